"""Quantised stacks in the experts operation: equal to the stacks they stand for, in little memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.quantised import LiveMatrices, fp8_weight, nvfp4_weight
from torch.utils.checkpoint import checkpoint

from ms4_kernels.moe import ExpertLora, experts
from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.quantised import QuantisedWeight

T, D, N, E, K, RANK = 12, 32, 16, 8, 3, 2
MAKERS = {
    "fp8": lambda: (fp8_weight(E, 2 * N, D, groups=2), fp8_weight(E, D, N)),
    "nvfp4": lambda: (nvfp4_weight(E, 2 * N, D, groups=2), nvfp4_weight(E, D, N)),
    "one of each": lambda: (fp8_weight(E, 2 * N, D), nvfp4_weight(E, D, N)),
    "gate_up only": lambda: (fp8_weight(E, 2 * N, D), torch.randn(E, D, N)),
    "down only": lambda: (torch.randn(E, 2 * N, D), nvfp4_weight(E, D, N)),
}


def dense(stack, dtype):
    return stack.dequantise(dtype) if isinstance(stack, QuantisedWeight) else stack.to(dtype)


def make_call(dtype):
    """(hidden, ids, weights, LoRA), with gradients wanted; no token goes to expert 1."""
    ids_tk = torch.rand(T, E - 1).topk(K).indices
    ids_tk = ids_tk + (ids_tk >= 1)
    shapes = ((E, RANK, D), (E, 2 * N, RANK), (E, RANK, N), (E, D, RANK))
    lora = ExpertLora(*(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes), 0.5, 0.7)
    return torch.randn(T, D).to(dtype).requires_grad_(), ids_tk, torch.rand(T, K).requires_grad_(), lora


def run(stacks, call, backend):
    hidden_td, ids_tk, weights_tk, lora = call
    out_td = experts(hidden_td, *stacks, ids_tk, weights_tk, lora=lora, backend=backend)
    factors = [] if lora is None else [lora.gate_up_a_erd, lora.gate_up_b_eir, lora.down_a_ern, lora.down_b_edr]
    wanted = [hidden_td, weights_tk, *factors]
    return [out_td, *torch.autograd.grad((out_td * torch.linspace(-1, 1, D, dtype=out_td.dtype)).sum(), wanted)]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_lora", [False, True], ids=["base", "lora"])
def test_equals_the_dequantised_stacks(kind, dtype, with_lora):
    stacks = MAKERS[kind]()
    stacks = tuple(stack if isinstance(stack, QuantisedWeight) else stack.to(dtype) for stack in stacks)
    hidden_td, ids_tk, weights_tk, lora = make_call(dtype)
    call = (hidden_td, ids_tk, weights_tk, lora if with_lora else None)
    actual = run(stacks, call, "cpu")
    expected = run([dense(stack, dtype) for stack in stacks], call, "cpu")
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)  # the same products of the same numbers in the same order
    # fp64: rounding of short sums. fp32: 1e-5 of values up to 10. bf16 is another order of roundings in the reference.
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    scale = [max(1.0, float(b.detach().abs().max())) for b in expected]
    for a, b, largest in zip(actual, run(stacks, call, "reference"), scale, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_gradients_by_finite_differences(kind):
    stacks = MAKERS[kind]()
    hidden_td, ids_tk, weights_tk, _ = make_call(torch.float64)
    weights_tk = weights_tk.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: experts(h, *stacks, ids_tk, w, backend="cpu"), (hidden_td, weights_tk))


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_keeps_codes_where_it_kept_weights(kind):
    stacks = MAKERS[kind]()
    hidden_td, ids_tk, weights_tk, _ = make_call(torch.bfloat16)
    own = {part.data_ptr() for stack in stacks for part in stack.tensors}
    kept: dict[tuple, torch.Tensor] = {}

    def keep(x):
        kept[x.data_ptr(), x.shape] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        experts(hidden_td, *stacks, ids_tk, weights_tk, backend="cpu")
    others = sum(x.numel() * x.element_size() for x in kept.values() if x.data_ptr() not in own)
    # As with plain stacks: input and pre-activation in bf16; routing weights, two int64 orders, int32 ends.
    assert others == T * (2 * D + 4 * K * N) + 4 * T * K + 2 * 8 * T * K + 4 * E
    assert own <= {pointer for pointer, _ in kept}


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_expert_at_a_time(kind, backend):
    stacks = MAKERS[kind]()
    hidden_td, ids_tk, weights_tk, _ = make_call(torch.float32)
    busy = len(ids_tk.unique())
    assert busy < E
    with LiveMatrices(2 * N * D) as live:  # D * N is half of that: no other tensor here has as many elements
        {"cpu": experts_cpu, "reference": experts_reference}[backend](hidden_td, *stacks, ids_tk, weights_tk).sum().backward()
    assert live.peak == 2 * N * D
    assert live.made == 2 * (busy if backend == "cpu" else E)  # forward and backward; the reference visits idle experts too

    with LiveMatrices(2 * N * D) as live:  # negative control: the count sees matrices that are kept
        _matrices = [stacks[0].expert(e).dequantise(torch.float32) for e in range(E)]
    assert live.peak == E * 2 * N * D


def test_a_quantised_stack_gets_no_gradient():
    stacks = MAKERS["fp8"]()
    hidden_td, ids_tk, weights_tk, _ = make_call(torch.float32)
    experts(hidden_td, *stacks, ids_tk, weights_tk).sum().backward()
    assert all(part.grad is None for stack in stacks for part in stack.tensors)


def test_under_checkpointing_and_deterministic_algorithms():
    stacks = MAKERS["fp8"]()
    hidden_td, ids_tk, weights_tk, lora = make_call(torch.float32)
    expected = run(stacks, (hidden_td, ids_tk, weights_tk, lora), "cpu")
    torch.use_deterministic_algorithms(True)
    try:
        out_td = checkpoint(lambda h, w: experts(h, *stacks, ids_tk, w, lora=lora), hidden_td, weights_tk, use_reentrant=False)
        grads = torch.autograd.grad((out_td * torch.linspace(-1, 1, D)).sum(), [hidden_td, weights_tk, lora.gate_up_a_erd])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip([out_td, *grads], expected, strict=False))


def test_lora_must_have_the_type_of_the_tokens():
    stacks = MAKERS["fp8"]()
    hidden_td, ids_tk, weights_tk, lora = make_call(torch.float32)
    halves = dataclasses.replace(lora, down_a_ern=lora.down_a_ern.bfloat16(), down_b_edr=lora.down_b_edr.bfloat16())
    with pytest.raises(ValueError, match="for hidden states"):
        experts(hidden_td, *stacks, ids_tk, weights_tk, lora=halves)
    with pytest.raises(ValueError, match=r"\[E, 2n, d\]"):
        experts(hidden_td, stacks[0], stacks[0], ids_tk, weights_tk)


def test_stacks_beyond_2_to_the_31_elements():
    num_experts, width, hidden_size = 3, 1 << 14, 1 << 15
    codes = torch.empty(num_experts, 2 * width, hidden_size, dtype=torch.uint8)  # 3 * 2^30 bytes that are never touched
    codes[2, :4] = 0
    codes[2, 1, 5] = 0x38
    weight = fp8_weight(1, 2, 2)
    part = type(weight)(codes, torch.full((num_experts, 2), 2.0)).expert(2)
    assert part.codes.storage_offset() == 2**31
    rows = type(weight)(part.codes[:4], part.scale)
    assert rows.dequantise(torch.float32).nonzero().tolist() == [[1, 5]]
