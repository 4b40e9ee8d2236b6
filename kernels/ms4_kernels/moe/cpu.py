"""The experts operation with a backward written by hand: sorted rows, grouped products, and little saved.

Decomposition: save only the layer's input X [T, d] and the pre-activation H [R, 2n] (2d + 4Kn bytes per token in bf16, where autograd
would keep every step), recompute the activation A from H, and take the router's gradient as <dA', A>, where dA' is the gradient of A before
the routing weight, so that the experts' outputs are not kept either. Rows return to tokens by gathering and summing in slot order, never by
atomic or unordered adds: two runs agree to the bit. Gradients nobody asked for (a frozen base) are not computed.
It is plain torch and runs on any device; it is meant for CPUs. Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_cpu.py``.

Shape suffixes: t tokens, k experts per token, e experts, r rows sorted by expert, d hidden, n expert intermediate, i = 2n; in the
projections: o features out, i features in, p LoRA rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.moe.arguments import Parameter, flatten, restore
from ms4_kernels.moe.gather_sum import gather_sum_torch as gather_sum
from ms4_kernels.moe.grouped import rows_by_rows, rows_by_weight, rows_by_weight_transposed
from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.quantised import QuantisedWeight
from ms4_kernels.routing.sorting import ExpertOrder, sort_by_expert


def experts_cpu(
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
    """Apply the experts. Arguments as for :func:`ms4_kernels.moe.experts`."""
    lora = lora or ExpertLora()
    pairs = [lora.gate_up_a_erd, lora.gate_up_b_eir, lora.down_a_ern, lora.down_b_edr]
    num_adapters = 0
    if adapter_t is not None:
        num_adapters = lora.num_adapters
        pairs = [None if stack is None else _by_segment(stack) for stack in pairs]
    order = sort_by_expert(expert_ids_tk, gate_up_eid.shape[0], adapter_t=adapter_t, num_adapters=num_adapters, num_rows=num_rows)
    options = (lora.gate_up_scale, lora.down_scale, recompute)
    return _Experts.apply(hidden_td, weights_tk, order, options, gate_up_eid, *pairs[:2], down_edn, *pairs[2:])  # type: ignore[return-value]


def _by_segment(stack: Tensor) -> Tensor:
    """[L, E, ...] as [E * (L + 1), ...], a matrix for each segment of rows; zeros for tokens without adapter."""
    none = stack.new_zeros(1, *stack.shape[1:])
    return torch.cat((none, stack)).transpose(0, 1).flatten(0, 1)


class _Projection(NamedTuple):
    """One stacked projection of all experts with its optional low-rank update."""

    weight_eoi: Tensor | QuantisedWeight
    a_epi: Tensor | None
    b_eop: Tensor | None
    scale: float
    ends_e: Tensor
    ends_s: Tensor  # of the rows of each low-rank pair: those of an expert, or of an expert and an adapter

    def forward(self, x_ri: Tensor) -> Tensor:
        y_ro = rows_by_weight(x_ri, self.weight_eoi, self.ends_e)
        if self.a_epi is not None and self.b_eop is not None:
            low_rp = rows_by_weight(x_ri, self.a_epi, self.ends_s)
            y_ro.add_(rows_by_weight(low_rp, self.b_eop, self.ends_s), alpha=self.scale)
        return y_ro

    def input_grad(self, dy_ro: Tensor) -> Tensor:
        dx_ri = rows_by_weight_transposed(dy_ro, self.weight_eoi, self.ends_e)
        if self.a_epi is not None and self.b_eop is not None:
            dlow_rp = rows_by_weight_transposed(dy_ro, self.b_eop, self.ends_s)
            dx_ri.add_(rows_by_weight_transposed(dlow_rp, self.a_epi, self.ends_s), alpha=self.scale)
        return dx_ri

    def parameter_grads(self, dy_ro: Tensor, x_ri: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Return the gradients of (weight, a, b), None where not needed."""
        dweight_eoi = rows_by_rows(dy_ro, x_ri, self.ends_e) if needed[0] else None
        da_epi = db_eop = None
        if self.a_epi is not None and self.b_eop is not None:
            if needed[1]:
                da_epi = rows_by_rows(rows_by_weight_transposed(dy_ro, self.b_eop, self.ends_s), x_ri, self.ends_s).mul_(self.scale)
            if needed[2]:
                db_eop = rows_by_rows(dy_ro, rows_by_weight(x_ri, self.a_epi, self.ends_s), self.ends_s).mul_(self.scale)
        return dweight_eoi, da_epi, db_eop


class _Experts(torch.autograd.Function):
    """Inputs 0 hidden, 1 routing weights, 2 order, 3 options, 4-6 gate_up (weight, a, b), 7-9 down (weight, a, b)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_td: Tensor, weights_tk: Tensor, order: ExpertOrder, options: tuple[float, float, bool], *parameters: Parameter
    ) -> Tensor:
        gate_up, down = _projections(parameters, options, order)
        h_ri = gate_up.forward(hidden_td.index_select(0, order.token_r))
        gate_rn, up_rn = h_ri.chunk(2, dim=-1)
        y_rd = down.forward(F.silu(gate_rn).mul_(up_rn))
        tensors, ctx.kinds = flatten(parameters)
        ctx.options = options
        ctx.save_for_backward(hidden_td, None if options[2] else h_ri, weights_tk, *order, order.segment_ends_s, *tensors)
        return gather_sum(y_rd, order.row_tk, weights_tk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_td, h_ri, weights_tk, pair_r, row_tk, ends_e, segment_ends_s, *tensors = ctx.saved_tensors
        order = ExpertOrder(pair_r, row_tk, ends_e, segment_ends_s)
        gate_up, down = _projections(restore(tensors, ctx.kinds), ctx.options, order)
        needs_hidden, needs_weights, needed = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4:]
        token_r = order.token_r
        if h_ri is None:
            h_ri = gate_up.forward(hidden_td.index_select(0, token_r))

        dout_rd = grad_outputs[0].index_select(0, token_r)
        dactivation_rn = down.input_grad(dout_rd)  # before the routing weight
        gate_rn, up_rn = h_ri.chunk(2, dim=-1)
        silu_rn = F.silu(gate_rn)
        activation_rn = silu_rn * up_rn
        dweights_tk = _of_slots(_row_dots(dactivation_rn, activation_rn), order).to(weights_tk.dtype) if needs_weights else None

        weight_r1 = weights_tk.reshape(-1)[pair_r].unsqueeze(1)
        dactivation_rn = _scale_rows(dactivation_rn, weight_r1)
        down_grads: tuple[Tensor | None, ...] = (None, None, None)
        if any(needed[3:]):
            down_grads = down.parameter_grads(dout_rd, _scale_rows(activation_rn, weight_r1), needed[3:])
        del dout_rd, activation_rn

        dh_ri = torch.empty_like(h_ri)
        dgate_rn, dup_rn = dh_ri.chunk(2, dim=-1)
        torch.mul(dactivation_rn, silu_rn, out=dup_rn)
        torch.ops.aten.silu_backward.grad_input(dactivation_rn.mul_(up_rn), gate_rn, grad_input=dgate_rn)
        gate_up_grads: tuple[Tensor | None, ...] = (None, None, None)
        if any(needed[:3]):
            gate_up_grads = gate_up.parameter_grads(dh_ri, hidden_td.index_select(0, token_r), needed[:3])
        dhidden_td = gather_sum(gate_up.input_grad(dh_ri), row_tk) if needs_hidden else None
        return dhidden_td, dweights_tk, None, None, *gate_up_grads, *down_grads


def _projections(
    parameters: Sequence[Parameter], options: tuple[float, float, bool], order: ExpertOrder
) -> tuple[_Projection, _Projection]:
    ends_s = order.ends_e if order.segment_ends_s is None else order.segment_ends_s
    gate_up, down = parameters[:3], parameters[3:]
    return (
        _Projection(*gate_up, options[0], order.ends_e, ends_s),  # type: ignore[arg-type]
        _Projection(*down, options[1], order.ends_e, ends_s),  # type: ignore[arg-type]
    )


def _of_slots(values_r: Tensor, order: ExpertOrder) -> Tensor:
    """The value of each slot's row, [T, K]; 0 for slots without one."""
    values_s = values_r.new_zeros(order.row_tk.numel())
    return values_s.index_copy_(0, order.pair_r, values_r).view(order.row_tk.shape)


def _row_dots(left_rn: Tensor, right_rn: Tensor) -> Tensor:
    """Return the dot product of each pair of rows, in fp32 or wider."""
    wide = torch.promote_types(left_rn.dtype, torch.float32)
    return (left_rn * right_rn).sum(dim=-1, dtype=wide)


def _scale_rows(rows_rn: Tensor, factor_r1: Tensor) -> Tensor:
    """Multiply each row by its factor in the wider type of the two, and keep the rows' type."""
    return (rows_rn * factor_r1).to(rows_rn.dtype)
