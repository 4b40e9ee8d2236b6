"""The one entrance to the experts operation; it checks shapes and calls the implementation that :mod:`ms4_kernels.dispatch` picks.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe``.

Shape suffixes: t tokens, k experts per token, e experts, r LoRA rank, d hidden, n expert intermediate, i = 2n (gate rows, then up rows).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.dispatch import Backend, choose
from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.native import against, experts_native
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.quantised import QuantisedWeight

__all__ = ["Backend", "ExpertLora", "experts"]

_LOG = logging.getLogger("ms4_kernels")


def experts(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    expert_ids_tk: Tensor,
    weights_tk: Tensor,
    *,
    lora: ExpertLora | None = None,
    adapter_t: Tensor | None = None,
    recompute: bool = False,
    num_rows: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Send each token through its experts and add up their weighted outputs (spec section 2.2).

    Args:
        hidden_td: [T, d] tokens; T may be 0.
        gate_up_eid: [E, 2n, d] stacked weights, rows 0..n-1 gate, n..2n-1 up. A quantised stack is frozen; it is dequantised to the type of
            ``hidden_td``, one expert at a time, forward and backward.
        down_edn: [E, d, n] stacked weights, quantised or not, whatever the other stack is.
        expert_ids_tk: int64 [T, K], each in 0..E-1, those of one token distinct or not; or -1: no expert in this slot, which then adds
            nothing, costs no product, and whose weight gets the gradient 0.
        weights_tk: [T, K] factors on the experts' outputs, of any floating type.
        lora: low-rank updates of the stacks. These, stacks that are not quantised and ``hidden_td`` have one type.
        adapter_t: int64 [T], where ``lora`` holds several adapters: the one of each token, -1 for none.
        recompute: keep the input only, 2d bytes per token in bf16, and compute the pre-activation again in the backward pass, for two
            thirds of the forward's products; otherwise 2d + 4n bytes for each of a token's experts are kept.
        num_rows: how many slots have an expert, where the caller knows. Triton does not wait to learn it: without it there is room for T*K.
        backend: ``auto`` takes Triton on a GPU; on a CPU the compiled kernels, or plain torch where there is no compiler.

    Returns:
        [T, d] in the type of ``hidden_td``; differentiable in hidden, weights, stacks that are not quantised, and the LoRA tensors.

    Raises:
        ValueError: shapes or types that do not fit, an expert id out of range, a wrong ``num_rows`` (on a CPU), or an unknown backend.
    """
    _check_shapes(hidden_td, gate_up_eid, down_edn, expert_ids_tk, weights_tk)
    _check_lora(gate_up_eid.shape, down_edn.shape, lora, hidden_td.dtype)
    _check_adapters(hidden_td.shape[0], lora, adapter_t)
    arguments = (hidden_td, gate_up_eid, down_edn, expert_ids_tk, weights_tk, lora)
    chosen = choose("experts", backend, hidden_td)
    if chosen == "reference":
        return experts_reference(*arguments, adapter_t=adapter_t)
    implementation: Any = experts_cpu
    if chosen == "cpu":
        others = (expert_ids_tk, weights_tk, adapter_t, *(() if lora is None else lora.stacks))
        reason = against(hidden_td, gate_up_eid, down_edn, *others)
        _say(hidden_td.device.type, reason)
        implementation = experts_cpu if reason else experts_native
    if chosen == "triton":
        from ms4_kernels.moe.triton.experts import experts_triton  # Triton is optional

        implementation = experts_triton
    return implementation(*arguments, adapter_t=adapter_t, recompute=recompute, num_rows=num_rows)


@cache
def _say(device: str, reason: str) -> None:
    """Log, once for each reason, which of the CPU paths runs."""
    if device == "cpu":
        _LOG.info(
            "experts operation on the CPU: %s", f"plain torch, as the compiled kernels cannot: {reason}" if reason else "compiled kernels"
        )


def _check_lora(gate_up_eid: torch.Size, down_edn: torch.Size, lora: ExpertLora | None, dtype: torch.dtype) -> None:
    if lora is None:
        return
    for stack, a_eri, b_eor in ((gate_up_eid, lora.gate_up_a_erd, lora.gate_up_b_eir), (down_edn, lora.down_a_ern, lora.down_b_edr)):
        if a_eri is None or b_eor is None:
            continue
        (num_experts, outputs, inputs), rank, several = stack, a_eri.shape[-2], a_eri.shape[:-3]
        if a_eri.shape != (*several, num_experts, rank, inputs) or b_eor.shape != (*several, num_experts, outputs, rank):
            raise ValueError(f"LoRA pair {list(a_eri.shape)}, {list(b_eor.shape)} does not fit a stack {list(stack)}")
        if not a_eri.dtype == b_eor.dtype == dtype:
            raise ValueError(f"LoRA pair of types {a_eri.dtype}, {b_eor.dtype} for hidden states of {dtype}")


def _check_adapters(tokens: int, lora: ExpertLora | None, adapter_t: Tensor | None) -> None:
    stacks = () if lora is None else (lora.gate_up_a_erd, lora.down_a_ern)
    axes = {tuple(stack.shape[:-3]) for stack in stacks if stack is not None}
    if adapter_t is None:
        if axes - {()}:
            raise ValueError("LoRA stacks [L, E, ...] of several adapters need adapter_t, the adapter of each token")
        return
    if len(axes) != 1 or len(next(iter(axes))) != 1:
        raise ValueError("adapter_t is given, but not LoRA stacks [L, E, ...] of one number of adapters")
    if adapter_t.shape != (tokens,) or adapter_t.is_floating_point():
        raise ValueError(f"adapter_t is {adapter_t.dtype} {list(adapter_t.shape)}, expected int64 [{tokens}]")


def _check_shapes(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    expert_ids_tk: Tensor,
    weights_tk: Tensor,
) -> None:
    num_experts, width, hidden_size = gate_up_eid.shape
    if expert_ids_tk.is_floating_point():
        raise ValueError(f"expert ids are {expert_ids_tk.dtype}, expected int64")
    if hidden_td.shape[1:] != (hidden_size,):
        raise ValueError(f"hidden is {list(hidden_td.shape)}, expected [T, {hidden_size}]")
    if down_edn.shape != (num_experts, hidden_size, width // 2) or width % 2:
        raise ValueError(f"stacks {list(gate_up_eid.shape)} and {list(down_edn.shape)} are not [E, 2n, d] and [E, d, n]")
    for stack in (gate_up_eid, down_edn):
        if isinstance(stack, Tensor) and stack.dtype != hidden_td.dtype:
            raise ValueError(f"hidden is {hidden_td.dtype}, a stack is {stack.dtype}")
    devices = {str(x.device) for x in (hidden_td, gate_up_eid, down_edn, expert_ids_tk, weights_tk)}
    if len(devices) > 1:
        raise ValueError(f"tensors on several devices: {', '.join(sorted(devices))}")
    if expert_ids_tk.shape != weights_tk.shape or expert_ids_tk.shape[0] != hidden_td.shape[0]:
        raise ValueError(f"ids {list(expert_ids_tk.shape)} and weights {list(weights_tk.shape)} do not fit {hidden_td.shape[0]} tokens")
