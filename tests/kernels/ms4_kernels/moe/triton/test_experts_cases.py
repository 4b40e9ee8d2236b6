"""The Triton experts on every case of ``support/experts_cases.py``, interpreted, with each byte that a kernel touches checked.

Judged as the CPU path is in ``../test_cpu_cases.py``, where the rule itself has its negative controls. What the kernels do not write is nan
here, an access out of bounds, a race between programs and an integer overflow raise. ``test_experts_mutations.py`` shows that all this
catches bugs.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.experts_cases import CASES, FP32, Case, explicit_truth, make, poisoned, run, violations
from support.mutations import plant
from support.triton_interpreter import interpreted
from triton.runtime import interpreter

from ms4_kernels.moe.triton import dh, experts, launch, operands


def parameters(cases):
    return [pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.slow else []) for case in cases]


def interpret(inputs, check=True, **options):
    with interpreted(check=check), poisoned():
        return run(experts.experts_triton, inputs, **options)


@cache
def result(case: Case) -> dict[str, torch.Tensor]:
    return interpret(make(case))


@pytest.mark.parametrize("case", parameters(CASES))
def test_error_at_most_twice_that_of_plain_torch(case):
    assert violations(result(case), case) == []


@pytest.mark.parametrize("case", parameters(case for case in CASES if case.lora and case.dtype == FP32))
def test_lora_gradients_equal_those_of_explicit_matrices(case):
    for name, exact in explicit_truth(case).items():
        error = (result(case)[name].double() - exact).norm() / exact.norm()
        assert error <= 1e-4, name  # what is promised; sums of some hundred terms in fp32 lose 1e-6


def cases_with(**wanted):
    return next(case for case in CASES if all(getattr(case, name) == value for name, value in wanted.items()))


DETERMINISM = [
    cases_with(routing="ragged", lora="both", adapters=2),
    cases_with(routing="one expert twice", stacks="dense"),
    cases_with(routing="odd segments", lora="gate_up"),
]


@pytest.fixture
def reversed_programs(monkeypatch):
    """Has the interpreter run the programs of each grid in reverse order."""
    set_index = interpreter.InterpreterBuilder.set_grid_idx

    def reversed_index(self, *program):
        set_index(self, *(size - 1 - index for size, index in zip(self.grid_dim, program, strict=True)))

    def switch_on():
        monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", reversed_index)

    return switch_on


@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_programs_in_reverse_order_agree_to_the_bit(case, reversed_programs):
    """Stronger than running twice, which one interpreter on one thread can hardly fail: no result may depend on which program ran first."""
    forwards = result(case)
    reversed_programs()
    backwards = interpret(make(case))
    assert forwards.keys() == backwards.keys()
    for name, value in forwards.items():
        assert torch.equal(value, backwards[name]), name


def test_control_reverse_order_shows_a_race(reversed_programs, monkeypatch, tmp_path):
    """The programs of two blocks of columns put their part of the router's gradient in one place: the last one stays."""
    case = cases_with(routing="ragged", lora="", stacks="dense")
    plant(monkeypatch, tmp_path, dh, "tl.store(dot_ptr + last_m * num_n + tile_n", "tl.store(dot_ptr + last_m * num_n")
    plant(monkeypatch, tmp_path, launch, "dot_rx.sum(dim=1)", "dot_rx[:, 0]")
    forwards = interpret(make(case), check=False)
    again = interpret(make(case), check=False)
    reversed_programs()
    backwards = interpret(make(case), check=False)
    assert torch.equal(forwards["weights_tk"], again["weights_tk"])
    assert not torch.equal(forwards["weights_tk"], backwards["weights_tk"])
    assert torch.equal(forwards["out"], backwards["out"])


@pytest.mark.parametrize("case", DETERMINISM[1:], ids=str)
def test_recomputing_gives_the_same_bits(case):
    recomputed = interpret(make(case), recompute=True)
    for name, value in result(case).items():
        assert torch.equal(value, recomputed[name]), name


QUANTISED = [cases_with(routing=routing, stacks=stacks) for routing, stacks in (
    ("ragged", "fp8"), ("ragged", "nvfp4"), ("odd segments", "fp8 two groups"), ("32 rows", "nvfp4"),
)]  # fmt: skip


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_codes_give_the_bits_that_their_values_give(case):
    """The forward and every gradient: the same numbers multiplied in the same order, so no tolerance."""
    plain = interpret(make(case).dequantised())
    for name, value in result(case).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("case", QUANTISED[:2], ids=str)
def test_e4m3_decoded_as_newer_devices_do_gives_the_same_bits(case, monkeypatch):
    """Hopper and later convert E4M3 themselves; elsewhere, and so in every other test here, integer arithmetic does it."""
    monkeypatch.setattr(operands, "has_e4m3", lambda device: True)
    native = interpret(make(case))
    for name, value in result(case).items():
        assert torch.equal(value, native[name]), name
