"""Bugs planted in the kernels, one at a time, and what catches each: the error against fp64, or the check of every access.

Without the bug every case here passes, in ``test_experts_cases.py``. A fragment that is no longer in its module fails the test: a kernel
that has changed needs its bugs planted anew.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from support.experts_cases import BF16, CASES, Case, Inputs, make, poisoned, run, violations
from support.mutations import StaleMutation, plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.moe.triton import combine, dh, experts, gram, grouped, launch, loads, up
from ms4_kernels.quantised import Fp8Weight


class Bug(NamedTuple):
    """A fragment of a module, what replaces it, and who catches it on which case."""

    what: str
    module: ModuleType
    old: str
    new: str
    caught_by: str
    case: Case


def case_with(**wanted) -> Case:
    return next(case for case in CASES if all(getattr(case, name) == value for name, value in wanted.items()))


SMALL = case_with(routing="ragged", dtype=BF16, stacks="dense", lora="")
EDGES = case_with(routing="empty edges", dtype=BF16)
ODD = case_with(routing="odd segments", stacks="fp8 two groups")
TALL = case_with(routing="64 rows", dtype=BF16)
ADAPTERS = case_with(routing="ragged", stacks="dense", adapters=2)
FAR = case_with(routing="ragged", dtype=BF16, stacks="fp8")
EMPTY_SLOTS = case_with(routing="empty slots", dtype=BF16, stacks="fp8")
NVFP4 = case_with(routing="ragged", stacks="nvfp4")

STORED_DOT = "tl.store(dot_ptr + last_m * num_n"
EMPTY = "    stop = tl.load(ends_ptr + segment)\n"

BUGS = [
    Bug("gate and up swapped", up, "act = gate * tl.sigmoid(gate) * up", "act = up * tl.sigmoid(up) * gate", "numerics", SMALL),
    Bug("another expert's weight", up, "_ptr += expert * weight_str", "_ptr += tl.maximum(expert - 1, 0) * weight_str", "numerics", SMALL),
    Bug("an expert past the last", grouped, "_ptr += expert * weight_str", "_ptr += (expert + 1) * weight_str", "bounds", SMALL),
    Bug("a sum begun anew", up, "gate_oi, gate, True", "gate_oi, gate * 0, True", "numerics", TALL),
    Bug("one row too many stored", grouped, "mask=(row_m < stop)", "mask=(row_m <= stop)", "race", SMALL),
    Bug("columns past the width of H stored", up, "else valid_m[:, None] & (col_c < N)[None, :]", "else valid_m[:, None]", "race", SMALL),
    Bug("columns past the width stored", grouped, "& (col_n < N)[None, :]", "& (col_n >= 0)[None, :]", "race", SMALL),
    Bug("tiles one row too long", loads, "tl.load(stop_ptr + tile_m),", "tl.load(stop_ptr + tile_m) + 1,", "race", SMALL),
    Bug("tiles one row too short", loads, "tl.load(stop_ptr + tile_m),", "tl.load(stop_ptr + tile_m) - 1,", "numerics", SMALL),
    Bug("programs past the tile list", loads, "size_m = tl.minimum(num_m - first_m, GROUP_M)", "size_m = GROUP_M", "bounds", SMALL),
    Bug("pairs taken for tokens", loads, "tl.load(pair_ptr + source_m) // TOP_K", "tl.load(pair_ptr + source_m)", "bounds", SMALL),
    Bug("rows not gathered", loads, "tl.load(pair_ptr + source_m) // TOP_K", "source_m // TOP_K", "numerics", SMALL),
    Bug("a column past the last", loads, "[None, :] < K, other", "[None, :] <= K, other", "bounds", SMALL),
    Bug("LoRA scale left out", grouped, "acc = acc * multiplier", "acc = acc * 1.0", "numerics", EDGES),
    Bug("tail of up taken from gate", up, "last_m, N + n_start, 2 * N, RANK", "last_m, n_start, 2 * N, RANK", "numerics", EDGES),
    Bug("no adapter taken for the first", up, "(segment % SLOTS - 1)", "tl.maximum(segment % SLOTS - 1, 0)", "numerics", ADAPTERS),
    Bug("no adapter taken for one", dh, "if SLOTS == 1 or adapter >= 0", "if SLOTS == 1 or adapter >= -1", "bounds", ADAPTERS),
    Bug("adapters one off", dh, "(segment % SLOTS - 1)", "(segment % SLOTS)", "bounds", ADAPTERS),
    Bug("parts of the epilogue swapped", dh, "first, second = halves", "second, first = halves", "numerics", TALL),
    Bug(
        "columns of the parts mixed",
        loads,
        "(BLOCK_M, 2, WIDTH // 2)), (0, 2, 1)",
        "(BLOCK_M, WIDTH // 2, 2)), (0, 1, 2)",
        "numerics",
        TALL,
    ),
    Bug("dS of one tile stored", dh, f"{STORED_DOT} + tile_n", STORED_DOT, "race", SMALL),
    Bug("dS of one tile used", launch, "dot_rx.sum(dim=1)", "dot_rx[:, 0]", "numerics", SMALL),
    Bug("slots without a row combined", combine, "mask=valid_d & (source >= 0)", "mask=valid_d", "bounds", EMPTY_SLOTS),
    Bug("dS in the order of the rows", experts, "dot_r[row_tk]", "dot_r[:-1].view(row_tk.shape)", "numerics", SMALL),
    Bug("dS with the routing weight", dh, "tl.sum(dact_mc * act,", "tl.sum(dact_mc * act * route_m[:, None],", "numerics", SMALL),
    Bug("wrong slope of silu", dh, "silu * (1.0 - sigmoid)", "gate * (1.0 - sigmoid)", "numerics", SMALL),
    Bug("routing weight left out of A'", dh, "(act * route_m[:, None])", "(act)", "numerics", SMALL),
    Bug("only the last rows summed", gram, "right_ri, acc, input_precision", "right_ri, input_precision", "numerics", TALL),
    Bug("rows of the next expert summed too", gram, "valid_r = row_r < stop", "valid_r = row_r < stop + 1", "bounds", SMALL),
    Bug("first row of the first expert left out", gram, "mask=segment > 0, other=0", "mask=segment > 0, other=1", "numerics", SMALL),
    Bug("nothing for experts without rows", gram, EMPTY, f"{EMPTY}    if start == stop:\n        return\n", "numerics", EDGES),
    Bug("only the last slot combined", combine, "acc_d += part_d", "acc_d = part_d", "numerics", SMALL),
    Bug("columns past the width combined", combine, "element_ty), mask=valid_d)", "element_ty))", "race", SMALL),
    Bug("halves of a byte swapped", loads, "tl.join(even_obj, odd_obj)", "tl.join(odd_obj, even_obj)", "numerics", NVFP4),
    Bug("scale of the other group", loads, "scale_ptr + row_o // rows_per_group", "scale_ptr + row_o * 0", "numerics", ODD),
]


def verdict(inputs: Inputs, case: Case, check: bool = True) -> str:
    """Who objects: ``bounds``, ``race``, ``overflow``, ``numerics``, or ``nobody``."""
    try:
        with interpreted(check=check), poisoned():
            actual = run(experts.experts_triton, inputs)
    except OutOfBoundsError:
        return "bounds"
    except RaceError:
        return "race"
    except OverflowError:
        return "overflow"
    return "numerics" if violations(actual, case) else "nobody"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.what}: {bug.caught_by}")
def test_a_planted_bug_is_caught(bug, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, bug.module, bug.old, bug.new)
    assert verdict(make(bug.case), bug.case) == bug.caught_by


def test_control_without_the_check_a_read_out_of_bounds_passes(monkeypatch, tmp_path):
    """What is read there is multiplied by zero, so that the numbers do not tell: the check is needed."""
    bug = next(bug for bug in BUGS if bug.what == "a column past the last")
    plant(monkeypatch, tmp_path, bug.module, bug.old, bug.new)
    assert verdict(make(bug.case), bug.case, check=False) == "nobody"


def far_apart(weight: Fp8Weight) -> Fp8Weight:
    """The same weight with its last expert past 2^31 elements, in memory that is not touched between the experts."""
    num_experts, rows, columns = weight.codes.shape
    stride = 2**31 // (num_experts - 1) + 16
    codes = torch.empty((num_experts - 1) * stride + rows * columns, dtype=torch.uint8).as_strided(weight.codes.shape, (stride, columns, 1))
    return Fp8Weight(codes.copy_(weight.codes), weight.scale)


def with_experts_far_apart(case: Case) -> Inputs:
    inputs = make(case)
    assert isinstance(inputs.gate_up_eid, Fp8Weight)
    assert isinstance(inputs.down_edn, Fp8Weight)
    return dataclasses.replace(inputs, gate_up_eid=far_apart(inputs.gate_up_eid), down_edn=far_apart(inputs.down_edn))


@pytest.mark.parametrize("planted", [None, up, grouped, dh], ids=lambda module: module.__name__.split(".")[-1] if module else "as it is")
def test_an_expert_past_2_to_the_31_elements(planted, monkeypatch, tmp_path):
    if planted:
        plant(monkeypatch, tmp_path, planted, "(segment // SLOTS).to(tl.int64)", "segment // SLOTS")
    assert verdict(with_experts_far_apart(FAR), FAR) == ("overflow" if planted else "nobody")


def test_control_a_module_rebuilt_without_a_bug_passes(monkeypatch, tmp_path):
    for module, word in ((up, "hidden_mk"), (loads, "magnitude"), (dh, "part_3"), (launch, "columns")):
        source = inspect.getsource(module)
        assert word in source
        plant(monkeypatch, tmp_path, module, source, source.replace(word, f"{word}_renamed"))
    assert verdict(make(SMALL), SMALL) == "nobody"


def test_control_a_stale_fragment_fails(monkeypatch, tmp_path):
    with pytest.raises(StaleMutation, match="0 times"):
        plant(monkeypatch, tmp_path, up, "no such line", "")
    with pytest.raises(StaleMutation, match="times in"):
        plant(monkeypatch, tmp_path, up, "tl.load", "tl.store")
