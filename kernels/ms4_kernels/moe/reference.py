"""What the experts operation computes, in the fewest plain differentiable torch operations. Slow; every other path must agree with it.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_reference.py``.

Shape suffixes: t tokens, k experts per token, e experts, r LoRA rank, s rows of one expert, d hidden, n expert intermediate, i = 2n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.quantised import QuantisedWeight, quantised_linear


def experts_reference(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    expert_ids_tk: Tensor,
    weights_tk: Tensor,
    lora: ExpertLora | None = None,
    *,
    adapter_t: Tensor | None = None,
) -> Tensor:
    """Compute ``out[t] = sum_k weights[t, k] * down_e(silu(gate_e x) * up_e x)`` with e = expert_ids[t, k].

    Arguments as for :func:`ms4_kernels.moe.experts`; any floating type, fp64 included. A slot of id -1 is in no expert's list.
    """
    lora = lora or ExpertLora()
    if adapter_t is not None:
        return _adapters_apart(hidden_td, gate_up_eid, down_edn, expert_ids_tk, weights_tk, lora, adapter_t)
    num_experts = gate_up_eid.shape[0]
    gate_up, down = _matrices(gate_up_eid), _matrices(down_edn)
    gate_up_a, gate_up_b = _unbind(lora.gate_up_a_erd, num_experts), _unbind(lora.gate_up_b_eir, num_experts)
    down_a, down_b = _unbind(lora.down_a_ern, num_experts), _unbind(lora.down_b_edr, num_experts)
    out_td = torch.zeros_like(hidden_td)
    for e in range(num_experts):
        token_s, slot_s = (expert_ids_tk == e).nonzero(as_tuple=True)
        h_si = _linear(hidden_td[token_s], gate_up[e], gate_up_a[e], gate_up_b[e], lora.gate_up_scale)
        gate_sn, up_sn = h_si.chunk(2, dim=-1)
        y_sd = _linear(F.silu(gate_sn) * up_sn, down[e], down_a[e], down_b[e], lora.down_scale)
        out_td = out_td.index_add(0, token_s, (y_sd * weights_tk[token_s, slot_s, None]).to(out_td.dtype))
    return out_td


def _adapters_apart(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    expert_ids_tk: Tensor,
    weights_tk: Tensor,
    lora: ExpertLora,
    adapter_t: Tensor,
) -> Tensor:
    """The tokens of each adapter by themselves; of none, without."""
    out_td = torch.zeros_like(hidden_td)
    for adapter in range(-1, lora.num_adapters):
        token_s = (adapter_t == adapter).nonzero().squeeze(1)
        part = ExpertLora() if adapter < 0 else lora.adapter(adapter)
        part_sd = experts_reference(hidden_td[token_s], gate_up_eid, down_edn, expert_ids_tk[token_s], weights_tk[token_s], part)
        out_td = out_td.index_add(0, token_s, part_sd)
    return out_td


def _matrices(stack: Tensor | QuantisedWeight) -> Sequence[Tensor | QuantisedWeight]:
    if isinstance(stack, Tensor):
        return stack.unbind(0)  # never stack[e]: its backward fills a whole stack with zeros, per expert
    return [stack.expert(index) for index in range(stack.shape[0])]


def _unbind(stack: Tensor | None, num_experts: int) -> Sequence[Tensor | None]:
    return [None] * num_experts if stack is None else stack.unbind(0)


def _linear(x: Tensor, weight: Tensor | QuantisedWeight, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
    y = F.linear(x, weight) if isinstance(weight, Tensor) else quantised_linear(x, weight)
    return y if a is None or b is None else y + scale * F.linear(F.linear(x, a), b)
