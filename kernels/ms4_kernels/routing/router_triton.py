"""The router after its matrix product, in Triton: one program chooses for a block of tokens, and one carries their gradient back.

Ties go to the lower id because the id is the least one that holds the maximum, not by the habits of a library's argmax. As on the CPU,
renormalised weights are the softmax of the chosen logits alone (see ``ms4_kernels.routing.cpu``), so that backward reads [T, K] and writes
[T, E]; without renormalisation it takes the softmax again from the logits. No atomics: two runs agree to the bit.
Imported by the interface only where Triton runs. Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_router_triton.py``.

Shape suffixes: t tokens of a block, e experts and padding up to a power of two, k chosen experts and padding.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel is given has types of Triton's own

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

NUM_WARPS = 4
_BLOCK_ELEMENTS = 2048
"""Logits of a program: 16 per thread, so that they stay in registers while K maxima are taken from them."""

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)  # 9 bits, so that its product with an exponent is exact
_LN2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def _exp(x):
    """``e**x`` for x <= 0 or NaN, within about one unit in the last place.

    ``tl.exp`` takes a hardware approximation of two units, and rounds ``x * log2(e)`` before, which costs x units more. Here the power of
    two is split off exactly, and what is left, at most ln(2) / 2, goes into Taylor's series: its ninth term is below 6e-9.
    """
    x = tl.where(x < -110.0, -110.0, x)  # gives 0, and no infinity may meet the subtraction; NaN stays
    exponent = tl.floor(x * _LOG2_E + 0.5)
    r = (x - exponent * _LN2_HIGH) - exponent * _LN2_LOW
    series = 1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040)))))))
    return tl.exp2(exponent) * series


@triton.jit
def choose_kernel(
    logits, weights, ids, num_tokens, scale,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write weights fp32 [T, K] and ids int64 [T, K] of logits [T, E]."""
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert_e = tl.arange(0, BLOCK_E)
    slot_k = tl.arange(0, BLOCK_K)
    is_expert_te = (expert_e < NUM_EXPERTS)[None, :]
    is_token_t = token_t < num_tokens
    place_te = token_t[:, None] * NUM_EXPERTS + expert_e[None, :]
    logits_te = tl.load(logits + place_te, mask=is_token_t[:, None] & is_expert_te, other=0.0).to(tl.float32)

    # Below every logit lie padding and the chosen ones, so that -inf is raised, and NaN, which compares with nothing, becomes +inf.
    left_te = tl.where(logits_te != logits_te, float("inf"), tl.maximum(logits_te, _LOWEST))
    left_te = tl.where(is_expert_te, left_te, -float("inf"))
    chosen_tk = tl.full((BLOCK_T, BLOCK_K), -float("inf"), tl.float32)
    ids_tk = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for k in tl.static_range(TOP_K):
        best_t = tl.max(left_te, 1)
        id_t = tl.min(tl.where(left_te == best_t[:, None], expert_e[None, :], BLOCK_E), 1)
        chosen_tk = tl.where((slot_k == k)[None, :], best_t[:, None], chosen_tk)
        ids_tk = tl.where((slot_k == k)[None, :], id_t[:, None], ids_tk)
        left_te = tl.where(expert_e[None, :] == id_t[:, None], -float("inf"), left_te)

    chosen_tk = tl.where(chosen_tk == _LOWEST, -float("inf"), chosen_tk)
    top_t = tl.max(chosen_tk, 1)
    parts_tk = tl.where((slot_k < TOP_K)[None, :], _exp(chosen_tk - top_t[:, None]), 0.0)
    if RENORMALIZE:
        sum_t = tl.sum(parts_tk, 1)
    else:
        sum_t = tl.sum(tl.where(is_expert_te, _exp(logits_te - top_t[:, None]), 0.0), 1)
    place_tk = token_t[:, None] * TOP_K + slot_k[None, :]
    is_slot_tk = is_token_t[:, None] & (slot_k < TOP_K)[None, :]
    tl.store(weights + place_tk, tl.div_rn(parts_tk, sum_t[:, None]) * scale, mask=is_slot_tk)
    tl.store(ids + place_tk, ids_tk.to(tl.int64), mask=is_slot_tk)


@triton.jit
def gradient_kernel(
    logits, weights, ids, dweights, dlogits, num_tokens, inverse_scale,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write dlogits [T, E]; the logits are read only without renormalisation.

    With q = weights / scale, the probabilities before scaling: ``dlogit_k = w_k sum_j q_j (dw_k - dw_j)`` after renormalisation, which
    subtracts before it multiplies, so that nothing cancels where one weight is nearly 1. Without it ``dlogit_e = w_e dw_e - q_e sum_j w_j
    dw_j``, where experts not chosen have the second term alone.
    """
    token_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert_e = tl.arange(0, BLOCK_E)
    slot_k = tl.arange(0, BLOCK_K)
    is_token_t = token_t < num_tokens
    place_tk = token_t[:, None] * TOP_K + slot_k[None, :]
    is_slot_tk = is_token_t[:, None] & (slot_k < TOP_K)[None, :]
    weights_tk = tl.load(weights + place_tk, mask=is_slot_tk, other=0.0)
    dweights_tk = tl.load(dweights + place_tk, mask=is_slot_tk, other=0.0)

    place_te = token_t[:, None] * NUM_EXPERTS + expert_e[None, :]
    is_logit_te = is_token_t[:, None] & (expert_e < NUM_EXPERTS)[None, :]
    if RENORMALIZE:
        dlogits_te = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    else:
        logits_te = tl.load(logits + place_te, mask=is_logit_te, other=0.0).to(tl.float32)
        logits_te = tl.where((expert_e < NUM_EXPERTS)[None, :], logits_te, -float("inf"))
        parts_te = _exp(logits_te - tl.max(logits_te, 1)[:, None])
        probabilities_te = tl.div_rn(parts_te, tl.sum(parts_te, 1)[:, None])
        dlogits_te = -probabilities_te * tl.sum(weights_tk * dweights_tk, 1)[:, None]
    for k in tl.static_range(TOP_K):
        id_t = tl.load(ids + token_t * TOP_K + k, mask=is_token_t, other=-1)
        weight_t = tl.load(weights + token_t * TOP_K + k, mask=is_token_t, other=0.0)
        part_t = tl.load(dweights + token_t * TOP_K + k, mask=is_token_t, other=0.0)
        if RENORMALIZE:
            part_t = tl.sum(weights_tk * inverse_scale * (part_t[:, None] - dweights_tk), 1)
        dlogits_te += tl.where(expert_e[None, :] == id_t[:, None], (weight_t * part_t)[:, None], 0.0)
    tl.store(dlogits + place_te, dlogits_te.to(dlogits.dtype.element_ty), mask=is_logit_te)


def constants(num_experts: int, top_k: int, renormalize: bool) -> dict[str, Any]:
    """The ``tl.constexpr`` arguments of both kernels."""
    block_e = int(triton.next_power_of_2(num_experts))
    return {
        "NUM_EXPERTS": num_experts,
        "TOP_K": top_k,
        "RENORMALIZE": renormalize,
        "BLOCK_T": max(1, _BLOCK_ELEMENTS // block_e),
        "BLOCK_E": block_e,
        "BLOCK_K": triton.next_power_of_2(top_k),
    }


def route_triton(logits_te: Tensor, top_k: int, renormalize: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Arguments and result as for :func:`ms4_kernels.routing.route`, without fp64."""
    return _Route.apply(logits_te, top_k, renormalize, scale)  # type: ignore[return-value]


class _Route(torch.autograd.Function):
    """Inputs 0 logits, then top_k, renormalize, scale; outputs weights and ids."""

    @staticmethod
    def forward(ctx: Any, logits_te: Tensor, top_k: int, renormalize: bool, scale: float) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = logits_te.shape
        logits_te = logits_te.contiguous()
        weights_tk = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits_te.device)
        ids_tk = torch.empty(num_tokens, top_k, dtype=torch.int64, device=logits_te.device)
        options = constants(num_experts, top_k, renormalize)
        if num_tokens:
            grid = (-(-num_tokens // options["BLOCK_T"]),)
            launch: dict[str, Any] = {**options, "num_warps": NUM_WARPS}
            with torch.cuda.device_of(logits_te):
                choose_kernel[grid](logits_te, weights_tk, ids_tk, num_tokens, scale, **launch)
        ctx.mark_non_differentiable(ids_tk)
        ctx.save_for_backward(weights_tk, ids_tk, None if renormalize else logits_te)
        ctx.scale, ctx.options, ctx.dtype = scale, options, logits_te.dtype
        return weights_tk, ids_tk

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights_tk, ids_tk, logits_te = ctx.saved_tensors
        num_tokens = weights_tk.shape[0]
        dlogits_te = torch.empty(num_tokens, ctx.options["NUM_EXPERTS"], dtype=ctx.dtype, device=weights_tk.device)
        if num_tokens:
            inverse_scale = 1 / ctx.scale if ctx.scale else 0.0
            grid = (-(-num_tokens // ctx.options["BLOCK_T"]),)
            launch: dict[str, Any] = {**ctx.options, "num_warps": NUM_WARPS}
            with torch.cuda.device_of(weights_tk):
                gradient_kernel[grid](
                    logits_te, weights_tk, ids_tk, grad_outputs[0].contiguous(), dlogits_te, num_tokens, inverse_scale, **launch
                )  # fmt: skip
        return dlogits_te, None, None, None
