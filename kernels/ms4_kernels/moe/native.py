"""The experts operation by the compiled CPU kernels (``ms4_kernels/native/experts.c``): one call forward and one backward for each layer.

The same decomposition as :mod:`ms4_kernels.moe.cpu`, with everything between tokens and outputs done inside a core's cache: gathering,
products, SwiGLU, low-rank updates, dequantisation. Saved are X and H only, H in blocks of the kernels' own order. Sums are made in one
order whatever the number of threads and whatever else is in the batch, so a token's result does not depend on its neighbours.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_native.py``.

Shape suffixes: t tokens, k experts per token, e experts, r sorted rows, d hidden, n expert width, i = 2n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.moe.arguments import Parameter, flatten, restore
from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.native_call import NativeCall
from ms4_kernels.native import library, why_not
from ms4_kernels.native.library import readable
from ms4_kernels.quantised import QuantisedWeight
from ms4_kernels.routing.sorting import ExpertOrder, sort_by_expert


class _Options(NamedTuple):
    lora_scales: tuple[float, float]
    num_adapters: int
    recompute: bool
    saves: bool
    num_rows: int | None


def against(hidden_td: Tensor, gate_up_eid: Tensor | QuantisedWeight, down_edn: Tensor | QuantisedWeight, *others: Tensor | None) -> str:
    """Why the compiled kernels do not take this call; empty where they do.

    They want plain tensors in the CPU's memory, fp32 or bf16, and each expert's matrix contiguous.
    """
    stacks = (gate_up_eid, down_edn)
    parts = [part for stack in stacks for part in ([stack] if isinstance(stack, Tensor) else stack.tensors)]
    if hidden_td.dtype not in (torch.float32, torch.bfloat16):
        return f"they compute fp32 and bf16, not {str(hidden_td.dtype).removeprefix('torch.')}"
    if not readable(hidden_td, *parts, *others):
        return "a tensor is not a plain one in the CPU's memory"
    if any(isinstance(stack, Tensor) and stack.stride()[1:] != (stack.shape[2], 1) for stack in stacks):
        return "an expert's matrix is not contiguous"
    return "" if library() is not None else why_not()


def experts_native(
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
    """Apply the experts. Arguments as for :func:`ms4_kernels.moe.experts`, of a kind that :func:`against` has nothing against."""
    lora = lora or ExpertLora()
    parameters = (gate_up_eid, lora.gate_up_a_erd, lora.gate_up_b_eir, down_edn, lora.down_a_ern, lora.down_b_edr)
    differentiable = (hidden_td, weights_tk, *parameters)
    saves = torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in differentiable)
    scales = (lora.gate_up_scale, lora.down_scale)
    options = _Options(scales, lora.num_adapters if adapter_t is not None else 0, recompute, saves, num_rows)
    return _NativeExperts.apply(hidden_td, weights_tk, expert_ids_tk, adapter_t, options, *parameters)  # type: ignore[return-value]


class _NativeExperts(torch.autograd.Function):
    """Inputs 0 hidden, 1 routing weights, 2 expert ids, 3 adapter of each token, 4 options, 5-7 gate_up (weight, a, b), 8-10 down."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_td: Tensor,
        weights_tk: Tensor,
        expert_ids_tk: Tensor,
        adapter_t: Tensor | None,
        options: _Options,
        *parameters: Parameter,
    ) -> Tensor:
        gate_up = parameters[0]
        assert gate_up is not None
        segments = {"adapter_t": adapter_t, "num_adapters": options.num_adapters, "num_rows": options.num_rows}
        order = sort_by_expert(expert_ids_tk, gate_up.shape[0], **segments)
        num_rows = order.pair_r.numel()
        h_ri = hidden_td.new_empty(num_rows, gate_up.shape[1]) if options.saves and not options.recompute else None
        out_td = torch.empty(hidden_td.shape)
        call = _native_call(hidden_td, weights_tk, order, options, parameters)
        call.set(h=h_ri, rows_out=torch.empty(num_rows, hidden_td.shape[1]), out=out_td)
        call.forward()
        tensors, ctx.kinds = flatten(parameters)
        ctx.options = options
        ctx.save_for_backward(hidden_td, h_ri, weights_tk, *order, order.segment_ends_s, *tensors)
        return out_td.to(hidden_td.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_td, h_ri, weights_tk, pair_r, row_tk, ends_e, segment_ends_s, *tensors = ctx.saved_tensors
        parameters = restore(tensors, ctx.kinds)
        needs_hidden, needs_weights, needed = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[5:]
        call = _native_call(hidden_td, weights_tk, ExpertOrder(pair_r, row_tk, ends_e, segment_ends_s), ctx.options, parameters)
        dhidden_td = torch.empty(hidden_td.shape) if needs_hidden else None
        # Slots without an expert have no row that would write their gradient.
        room = torch.zeros if pair_r.numel() < row_tk.numel() else torch.empty
        dweights_tk = room(weights_tk.shape) if needs_weights else None
        rows_rd = torch.empty(pair_r.numel(), hidden_td.shape[1]) if needs_hidden else None
        call.set(h=h_ri, dout=grad_outputs[0].float().contiguous(), rows_out=rows_rd, out=dhidden_td, drouting=dweights_tk)
        grads = call.make_grads(parameters, needed)
        call.backward()
        return (
            None if dhidden_td is None else dhidden_td.to(hidden_td.dtype),
            None if dweights_tk is None else dweights_tk.to(weights_tk.dtype),
            *(None,) * 3,
            *(
                grad if grad is None or not isinstance(parameter, Tensor) else grad.to(parameter.dtype)
                for grad, parameter in zip(grads, parameters, strict=True)
            ),
        )


def _native_call(
    hidden_td: Tensor, weights_tk: Tensor, order: ExpertOrder, options: _Options, parameters: Sequence[Parameter]
) -> NativeCall:
    return NativeCall(hidden_td, weights_tk, order, options.lora_scales, options.num_adapters, options.recompute, parameters)
