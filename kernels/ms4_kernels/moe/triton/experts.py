"""The experts operation on a GPU: the decomposition of ``moe/cpu.py`` in kernels that gather, multiply and finish in one pass each.

Saved for the backward are the layer's input X [T, d] and the pre-activation H [R, 2n], with ``recompute`` only X. Rows return to tokens
by gathering and summing in slot order; nothing is added atomically, and two runs agree to the bit. LoRA goes through products of its rank:
``x A^T`` and ``dy B`` are made once, [R, p], and their tails added in the epilogues; ``B A`` is never formed. What is not asked for is not
computed: a frozen stack launches no gradient kernel.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_experts.py``.

Shape suffixes: t tokens, k experts per token, e experts, r rows sorted by expert (t*k less the empty slots), d hidden, n expert
intermediate, i = 2n, p LoRA rank; in the gradients of a projection o features out, i features in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.moe.arguments import Parameter, flatten, restore
from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.triton import launch
from ms4_kernels.moe.triton.operands import Factor, Rows, Stack
from ms4_kernels.quantised import QuantisedWeight
from ms4_kernels.routing import ExpertOrder, sort_by_expert

__all__ = ["experts_triton"]


def experts_triton(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    expert_ids_tk: Tensor,
    weights_tk: Tensor,
    lora: ExpertLora | None = None,
    *,
    adapter_t: Tensor | None = None,
    recompute: bool = False,
    num_rows: int | None = None,
) -> Tensor:
    """Apply the experts. Arguments as for :func:`ms4_kernels.moe.experts`, in fp32, bf16 or fp16, and:

    Args:
        adapter_t: int64 [T], the LoRA adapter of each token, -1 for none. The LoRA tensors then begin with an axis of adapters:
            ``gate_up_a_erd`` is [L, E, p, d], and so on.
        recompute: save X only, and make H again in the backward: 2d bytes per token in bf16 instead of 2d + 4Kn, for two thirds of the
            forward's products.
        num_rows: slots that have an expert; believed. Without it there is room for T*K.

    Returns:
        [T, d] in the type of ``hidden_td``; differentiable once.

    Raises:
        ValueError: a stack whose matrices are not contiguous, or ``adapter_t`` with LoRA tensors that have no axis of adapters.
    """
    lora = lora or ExpertLora()
    parameters: list[Parameter] = [gate_up_eid, lora.gate_up_a_erd, lora.gate_up_b_eir, down_edn, lora.down_a_ern, lora.down_b_edr]
    factors = [factor for factor in (lora.gate_up_a_erd, lora.down_a_ern) if factor is not None]
    if adapter_t is not None and any(factor.ndim != 4 for factor in factors):
        raise ValueError("adapters were given for each token, so the LoRA tensors must begin with an axis of adapters")
    num_adapters = factors[0].shape[0] if adapter_t is not None and factors else 0
    if not factors:
        adapter_t = None
    differentiable = [hidden_td, weights_tk, *(parameter for parameter in parameters if isinstance(parameter, Tensor))]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    settings = _Settings(lora.gate_up_scale, lora.down_scale, num_adapters + 1, keep, recompute)
    # Triton launches on the current device, whatever device the tensors are on; autograd takes care of the backward itself.
    with torch.cuda.device(hidden_td.device) if hidden_td.device.type == "cuda" else nullcontext():
        order = sort_by_expert(expert_ids_tk, gate_up_eid.shape[0], adapter_t=adapter_t, num_adapters=num_adapters, num_rows=num_rows)
        return _Experts.apply(hidden_td, weights_tk, order, settings, *parameters)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a call is told besides tensors."""

    gate_up_scale: float
    down_scale: float
    slots: int
    keep: bool
    recompute: bool


@dataclasses.dataclass(frozen=True)
class _Projection:
    """One stacked projection with its optional low-rank update ``scale * B A``; A is stored [p, I], B is [O, p]."""

    stack: Stack
    a: Factor | None
    b: Factor | None
    scale: float

    @classmethod
    def of(cls, parameters: Sequence[Parameter], scale: float) -> _Projection:
        weight, a, b = parameters
        assert weight is not None
        assert not isinstance(a, QuantisedWeight)
        assert not isinstance(b, QuantisedWeight)
        return cls(Stack.of(weight), Factor.of(a), Factor.of(b), scale)

    def low(self, x: Tensor, rows: Rows, *, gathered: bool = False) -> Tensor | None:
        """``scale * x A^T`` [R, p]."""
        return None if self.a is None else launch.low_rank(x, self.a, rows, self.scale, gathered=gathered, k_inner=True)

    def dlow(self, dy: Tensor, rows: Rows, *, gathered: bool = False) -> Tensor | None:
        """``scale * dy B`` [R, p]."""
        return None if self.b is None else launch.low_rank(dy, self.b, rows, self.scale, gathered=gathered, k_inner=False)


class _Experts(torch.autograd.Function):
    """Inputs 0 hidden, 1 routing weights, 2 order, 3 settings, 4-6 gate_up (weight, a, b), 7-9 down (weight, a, b)."""

    @staticmethod
    def forward(ctx: Any, hidden_td: Tensor, weights_tk: Tensor, order: ExpertOrder, settings: _Settings, *parameters: Parameter) -> Tensor:
        rows = Rows(order, weights_tk.shape[1], settings.slots)
        gate_up, down = _projections(parameters, settings)
        hidden_td, weights_tk = hidden_td.contiguous(), weights_tk.contiguous()
        save_h = settings.keep and not settings.recompute
        low_rp = gate_up.low(hidden_td, rows, gathered=True)
        h_ri, act_rn = launch.up(hidden_td, gate_up.stack, rows, low_rp, gate_up.b, save_h=save_h)
        assert act_rn is not None
        y_rd = launch.grouped(act_rn, down.stack, rows, down.low(act_rn, rows), down.b, k_inner=True)
        if settings.keep:
            tensors, ctx.kinds = flatten(parameters)
            ctx.save_for_backward(hidden_td, h_ri, weights_tk, *order, order.segment_ends_s, *tensors)
            ctx.settings = settings
        return launch.combine(y_rd, order.row_tk, weights_tk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_td, h_ri, weights_tk, pair_r, row_tk, ends_e, segment_ends_s, *tensors = ctx.saved_tensors
        rows = Rows(ExpertOrder(pair_r, row_tk, ends_e, segment_ends_s), row_tk.shape[1], ctx.settings.slots)
        parameters = restore(tensors, ctx.kinds)
        gate_up, down = _projections(parameters, ctx.settings)
        needs_hidden, needs_weights, needed = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4:]
        dout_td = grad_outputs[0].contiguous()

        low_rp = gate_up.low(hidden_td, rows, gathered=True) if h_ri is None or needed[2] else None
        if h_ri is None:
            h_ri, _ = launch.up(hidden_td, gate_up.stack, rows, low_rp, gate_up.b, save_act=False)
        assert h_ri is not None
        dlow_rp = down.dlow(dout_td, rows, gathered=True)
        dh_ri, act_rn, dot_r = launch.dh(dout_td, down.stack, rows, weights_tk, h_ri, dlow_rp, down.a, save_act=any(needed[3:]))
        dweights_tk = dot_r[row_tk].to(weights_tk.dtype) if needs_weights else None
        down_grads = _empty_grads(parameters[3:], needed[3:])
        if act_rn is not None:
            low_down_rp = down.low(act_rn, rows) if needed[5] else None
            _write_grads(down_grads, rows, act_rn, dout_td, low_down_rp, dlow_rp, gather_dy=True)
        del act_rn, dlow_rp

        dlow_rp = gate_up.dlow(dh_ri, rows) if needs_hidden or needed[1] else None
        gate_up_grads = _empty_grads(parameters[:3], needed[:3])
        _write_grads(gate_up_grads, rows, hidden_td, dh_ri, low_rp, dlow_rp, gather_x=True)
        dhidden_td = None
        if needs_hidden:
            dhidden_td = launch.combine(launch.grouped(dh_ri, gate_up.stack, rows, dlow_rp, gate_up.a, k_inner=False), row_tk)
        return dhidden_td, dweights_tk, None, None, *gate_up_grads, *down_grads


def _projections(parameters: Sequence[Parameter], settings: _Settings) -> tuple[_Projection, _Projection]:
    return _Projection.of(parameters[:3], settings.gate_up_scale), _Projection.of(parameters[3:], settings.down_scale)


def _empty_grads(parameters: Sequence[Parameter], needed: Sequence[bool]) -> list[Tensor | None]:
    """Room for the gradients of (weight, a, b) that are needed."""
    return [
        torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if is_needed and isinstance(parameter, Tensor)
        else None
        for parameter, is_needed in zip(parameters, needed, strict=True)
    ]


def _write_grads(
    grads: Sequence[Tensor | None],
    rows: Rows,
    x: Tensor,
    dy: Tensor,
    low_rp: Tensor | None,
    dlow_rp: Tensor | None,
    *,
    gather_x: bool = False,
    gather_dy: bool = False,
) -> None:
    """Fill the gradients of (weight, a, b) that have room: ``dy^T x``, ``dlow^T x``, ``dy^T low``; sides of tokens are gathered."""
    dweight_eoi, da_epi, db_eop = grads
    if dweight_eoi is not None:
        launch.gram(dy, x, rows, dweight_eoi, gather_left=gather_dy, gather_right=gather_x)
    if da_epi is not None:
        assert dlow_rp is not None
        launch.gram(dlow_rp, x, rows, da_epi, gather_right=gather_x)
    if db_eop is not None:
        assert low_rp is not None
        launch.gram(dy, low_rp, rows, db_eop, gather_left=gather_dy)
