"""The checks of ``support/gpu.py`` on the CPU: what they pass, and planted faults that they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.experts_cases import BF16, FACTORS, FP32, Case, make, reference, run
from support.gpu import differing, moved_inputs, poisoned, saved_bytes, worse_than_torch

from ms4_kernels.moe.cpu import experts_cpu

CPU = torch.device("cpu")
CASE = Case("ragged", BF16, "dense", "both", 8, trained=True)


@pytest.fixture(scope="module")
def results():
    inputs = moved_inputs(make(CASE), CPU)
    return run(experts_cpu, inputs), run(reference, inputs), run(reference, inputs.in_fp64())


def test_a_right_result_passes(results):
    got, plain, exact = results
    assert worse_than_torch(got, plain, exact, BF16) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda x: x * 1.02, "norm"),  # bf16 rounds by 0.2% at most
        (lambda x: x.index_put((torch.tensor(3),), x[3] + x.abs().max()), "largest"),
        (lambda x: x * float("nan"), "norm"),
        (lambda x: x.float(), "instead of"),
        (lambda x: x[:-1], "instead of"),
    ],
    ids=["scaled", "one row", "nan", "type", "shape"],
)
@pytest.mark.parametrize("name", ["out", "hidden_td", "gate_up_eid", "down_b_edr"])
def test_faults_are_refused(results, name, fault, says):
    got, plain, exact = results
    lines = worse_than_torch(got | {name: fault(got[name])}, plain, exact, BF16)
    assert any(line.startswith(f"{name}: ") and says in line for line in lines)


def test_what_must_be_zero_and_is_not_is_refused():
    exact = {"x": torch.tensor([0.0, 1.0] * 20, dtype=torch.float64)}
    off = {"x": exact["x"].to(BF16) + torch.tensor([1e-9, 0.0] * 20, dtype=BF16)}
    assert worse_than_torch(off, {"x": exact["x"].to(BF16)}, exact, BF16) == ["x: not zero where it must be"]


@pytest.mark.parametrize("stacks", ["dense", "nvfp4"])
def test_moved_inputs_are_the_same_call(stacks):
    case = dataclasses.replace(CASE, stacks=stacks, trained=stacks == "dense", adapters=2, dtype=FP32)
    inputs = make(case)
    assert differing(run(reference, moved_inputs(inputs, CPU)), run(reference, inputs)) == []
    assert moved_inputs(inputs, CPU).hidden_td is not inputs.hidden_td


def test_differing_names_what_differs_by_a_bit(results):
    got = results[0]
    assert differing(got, got) == []
    changed = got | {"out": torch.nextafter(got["out"], got["out"] + 1)}
    assert differing(got, changed) == ["out"]


def test_saved_bytes_count_each_storage_once_without_parameters():
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(7, 7, requires_grad=True)
    parameters = {"weight": weight}
    assert saved_bytes(lambda: x @ weight, parameters) == {"floating": 4 * 35, "other": 0}
    assert saved_bytes(lambda: x @ weight) == {"floating": 4 * (35 + 49), "other": 0}
    assert saved_bytes(lambda: x.sin() + x.cos(), parameters) == {"floating": 4 * 35, "other": 0}
    assert saved_bytes(lambda: (x @ weight)[torch.tensor([0, 2])], parameters) == {"floating": 4 * 35, "other": 16}


def test_saved_bytes_of_the_experts_on_the_cpu():
    inputs = moved_inputs(make(CASE), CPU)
    arguments = (inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.expert_ids_tk, inputs.weights_tk, inputs.lora)
    parameters = {name: x for name, x in inputs.wanted().items() if name in (*FACTORS, "gate_up_eid", "down_edn")}
    tokens, top_k = inputs.expert_ids_tk.shape
    saved = saved_bytes(lambda: experts_cpu(*arguments), parameters)
    assert saved["floating"] == tokens * (2 * CASE.width + 4 * top_k * CASE.expert_width + 4 * top_k)
    assert saved["other"] == tokens * top_k * 16 + 4 * 5


def test_new_memory_is_poisoned():
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned():
        assert torch.empty(3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
