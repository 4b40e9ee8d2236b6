"""The Triton experts however they are called: what is asked for, how often, and how arguments lie in memory change no bit of a result."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from support.experts_cases import CASES, FACTORS, Inputs, make, poisoned, run
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton.experts import experts_triton

CASE = next(case for case in CASES if case.routing == "one expert twice" and case.trained)


def interpret(inputs, **options):
    with interpreted(check=False), poisoned():
        return run(experts_triton, inputs, **options)


@cache
def everything() -> dict[str, torch.Tensor]:
    return interpret(make(CASE))


def changed(inputs: Inputs, change) -> Inputs:
    """The same call with ``change(name, tensor)`` for each of its floating tensors."""
    assert inputs.lora is not None
    lora = dataclasses.replace(inputs.lora, **{name: change(name, getattr(inputs.lora, name)) for name in FACTORS})
    names = ("hidden_td", "gate_up_eid", "down_edn", "weights_tk", "dout_td")
    return dataclasses.replace(inputs, lora=lora, **{name: change(name, getattr(inputs, name)) for name in names})


def arguments(inputs: Inputs):
    return inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.expert_ids_tk, inputs.weights_tk, inputs.lora


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("wanted", ["hidden_td", "weights_tk", "gate_up_eid", "down_edn", *FACTORS])
def test_each_gradient_alone_is_the_same(wanted, recompute):
    alone = changed(make(CASE), lambda name, x: x.detach().requires_grad_(name == wanted))
    found = interpret(alone, recompute=recompute)
    assert found.keys() == {"out", wanted}
    for name, value in found.items():
        assert torch.equal(value, everything()[name])


def test_the_forward_alone_is_the_same():
    with interpreted(check=False), poisoned(), torch.no_grad():
        out_td = experts_triton(*arguments(make(CASE)))
    assert torch.equal(out_td, everything()["out"])


def test_arguments_with_gaps_between_rows_and_experts():
    def spread(name, x):
        if name in ("gate_up_eid", "down_edn"):  # whose matrices must be contiguous
            return torch.stack((x.detach(), torch.zeros_like(x)), 1)[:, 0].requires_grad_()
        return torch.stack((x.detach(), torch.zeros_like(x)), -1)[..., 0].requires_grad_(x.requires_grad)

    inputs = changed(make(CASE), spread)
    assert not inputs.hidden_td.is_contiguous()
    assert not inputs.gate_up_eid.is_contiguous()
    for name, value in interpret(dataclasses.replace(inputs, expert_ids_tk=inputs.expert_ids_tk.t().contiguous().t())).items():
        assert torch.equal(value, everything()[name]), name


def test_a_gradient_that_is_one_number_for_all():
    """``out.sum().backward()`` hands over an expanded scalar."""
    inputs = make(CASE)
    one = torch.ones((), dtype=CASE.dtype)
    expanded = interpret(dataclasses.replace(inputs, dout_td=one.expand_as(inputs.dout_td)))
    written_out = interpret(dataclasses.replace(inputs, dout_td=torch.ones_like(inputs.dout_td)))
    for name, value in expanded.items():
        assert torch.equal(value, written_out[name]), name


def test_backward_twice_and_no_further_derivative():
    inputs = make(CASE)
    wanted = inputs.wanted()
    with interpreted(check=False), poisoned():
        out_td = experts_triton(*arguments(inputs))
        first = torch.autograd.grad(out_td, list(wanted.values()), inputs.dout_td, retain_graph=True)
        dout_td = inputs.dout_td.clone().requires_grad_()
        second = torch.autograd.grad(out_td, list(wanted.values()), dout_td, create_graph=True)
        for name, one, other in zip(wanted, first, second, strict=True):
            assert torch.equal(one, other), name
            assert torch.equal(one, everything()[name]), name
        with pytest.raises(RuntimeError, match="once_differentiable"):
            second[0].sum().backward()
