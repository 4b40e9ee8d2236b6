"""The hand-written backward against finite differences and against autograd through the reference, on every shape that can go wrong."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.moe import ExpertLora
from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.moe.reference import experts_reference

D, N, E, RANK = 12, 10, 6, 3
RANDOM = torch.Generator().manual_seed(0)
ROUTINGS = {
    "spread": torch.rand(37, E, generator=RANDOM).topk(2).indices,
    "one token": torch.tensor([[4, 1]]),
    "no token": torch.empty(0, 2, dtype=torch.int64),
    "all to one expert": torch.full((20, 1), 3),
    "empty experts": torch.randint(1, 3, (25, 1), generator=RANDOM) * 2,
    "every expert": torch.arange(E).repeat(5, 1),
    "one expert twice": torch.tensor([[2, 2], [0, 2]]),
}


def make_inputs(ids_tk, dtype=torch.float64, with_lora=True):
    """Return (hidden, gate_up, down, weights, lora), all requiring gradients."""

    def normal(*shape):
        return torch.randn(*shape).to(dtype).requires_grad_()

    lora = ExpertLora(normal(E, RANK, D), normal(E, 2 * N, RANK), normal(E, RANK, N), normal(E, D, RANK), 0.5, 0.7) if with_lora else None
    weights_tk = torch.rand(ids_tk.shape).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    return normal(ids_tk.shape[0], D), normal(E, 2 * N, D), normal(E, D, N), weights_tk, lora


def factors_of(lora):
    return [lora.gate_up_a_erd, lora.gate_up_b_eir, lora.down_a_ern, lora.down_b_edr]


def outputs_and_grads(function, ids_tk, inputs):
    """Return the output and the gradient of every input of a smooth function of it."""
    hidden_td, gate_up_eid, down_edn, weights_tk, lora = inputs
    out_td = function(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, lora)
    factors = torch.linspace(-1, 1, D, dtype=out_td.dtype)
    tensors = [hidden_td, gate_up_eid, down_edn, weights_tk, *(factors_of(lora) if lora else ())]
    return [out_td, *torch.autograd.grad((out_td * factors).sum(), tensors)]


@pytest.mark.parametrize("with_lora", [False, True], ids=["base", "lora"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_equals_reference(routing, with_lora):
    ids_tk = ROUTINGS[routing]
    inputs = make_inputs(ids_tk, with_lora=with_lora)
    actual = outputs_and_grads(experts_cpu, ids_tk, inputs)
    expected = outputs_and_grads(experts_reference, ids_tk, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)  # fp64; values reach 1e2


@pytest.mark.parametrize("half", ["gate_up", "down"])
def test_either_lora_pair_alone(half):
    ids_tk = ROUTINGS["spread"]
    *inputs, lora = make_inputs(ids_tk)
    if half == "gate_up":
        alone = ExpertLora(lora.gate_up_a_erd, lora.gate_up_b_eir, gate_up_scale=0.5)
    else:
        alone = ExpertLora(down_a_ern=lora.down_a_ern, down_b_edr=lora.down_b_edr, down_scale=0.7)
    hidden_td, gate_up_eid, down_edn, weights_tk = inputs
    actual = experts_cpu(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, alone)
    expected = experts_reference(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, alone)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_gradients_by_finite_differences():
    ids_tk = torch.tensor([[0, 4], [4, 1], [1, 0]])
    hidden_td, gate_up_eid, down_edn, weights_tk, lora = make_inputs(ids_tk)
    assert lora is not None

    def function(hidden, gate_up, down, weights, a1, b1, a2, b2):
        return experts_cpu(hidden, gate_up, down, ids_tk, weights, ExpertLora(a1, b1, a2, b2, 0.5, 0.7))

    inputs = (hidden_td, gate_up_eid, down_edn, weights_tk, *factors_of(lora))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_agree_to_the_bit(dtype):
    ids_tk = ROUTINGS["spread"]
    inputs = make_inputs(ids_tk, dtype)
    for first, second in zip(*(outputs_and_grads(experts_cpu, ids_tk, inputs) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_bf16_is_no_worse_than_plain_torch_in_bf16():
    ids_tk = torch.rand(200, E).topk(3).indices
    inputs = make_inputs(ids_tk, torch.bfloat16)
    *tensors, lora = inputs

    def widen(tensors):
        return [x.detach().double().requires_grad_() for x in tensors]

    wide_inputs = (*widen(tensors), ExpertLora(*widen(factors_of(lora)), lora.gate_up_scale, lora.down_scale))
    exact = outputs_and_grads(experts_reference, ids_tk, wide_inputs)
    actual = outputs_and_grads(experts_cpu, ids_tk, inputs)
    plain = outputs_and_grads(experts_reference, ids_tk, inputs)
    for ours, torchs, truth in zip(actual, plain, exact, strict=True):
        error, bound = ((x.double() - truth).norm() / truth.norm() for x in (ours, torchs))
        assert error <= 1.5 * bound  # both round at about as many places
        assert error < 0.01


def test_second_derivatives_are_refused():
    ids_tk = ROUTINGS["spread"]
    hidden_td, gate_up_eid, down_edn, weights_tk, _ = make_inputs(ids_tk, with_lora=False)
    out_td = experts_cpu(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk)
    (grad_td,) = torch.autograd.grad(out_td.square().sum(), hidden_td, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_td.sum().backward()
