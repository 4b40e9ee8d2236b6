"""The mixture-of-experts block: router, routed experts as two stacked parameters, shared expert (spec sections 2.1 and 2.2).

Exercise it: ``pytest tests/ms4_train/model/test_moe.py``.

Shape suffixes: t tokens, k experts per token, e experts, d hidden, n expert intermediate, i = 2n (gate rows, then up rows).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms4_kernels.dispatch import Backend
from ms4_kernels.moe import ExpertLora, experts
from ms4_kernels.native.linear import linear
from ms4_kernels.routing import route
from ms4_train.model.config import TextConfig
from ms4_train.model.linear import Linear
from ms4_train.model.quantised import QuantisedStack
from ms4_train.model.router_terms import RouterRecorder

LocalExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
ExpertExchange = Callable[[Tensor, Tensor, Tensor, LocalExperts], Tensor]


class Mistral4Router(nn.Module):
    """Chooses the experts of each token. Logits are fp32 even in a bf16 model: near-ties would otherwise flip between devices.

    Attributes:
        recorder: takes the logits of each forward pass, for the routers' own losses; None where there are none.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.renormalize = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.recorder: RouterRecorder | None = None

    def forward(self, hidden_td: Tensor, added_te: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (weights_tk, expert_ids_tk), fp32 and int64; ``added_te``, an adapter's part, is added to the logits."""
        wide = torch.promote_types(hidden_td.dtype, torch.float32)
        logits_te = linear(hidden_td.to(wide), self.weight.to(wide))
        if added_te is not None:
            logits_te = logits_te + added_te
        if self.recorder is not None:
            self.recorder.record(logits_te)
        return route(logits_te, self.top_k, self.renormalize, self.routed_scaling_factor)


class Mistral4Experts(nn.Module):
    """The routed experts of a layer, or, with expert parallelism, this rank's share of them.

    Attributes:
        gate_up_proj: [E, 2n, d], a parameter, or a :class:`QuantisedStack` that stands for one.
        down_proj: [E, d, n], likewise.
        recompute: keep the input only and compute the pre-activation again in the backward pass.
        lora: an adapter over the stacks, if any; its ``kernel_lora()`` returns an :class:`ExpertLora`.
        exchange: sends tokens to the ranks that hold their experts, called as ``exchange(hidden_td, expert_ids_tk, weights_tk, compute)``,
            where ``compute(hidden, ids, weights)`` runs this rank's experts on their local ids.
    """

    gate_up_proj: nn.Parameter | QuantisedStack
    down_proj: nn.Parameter | QuantisedStack

    def __init__(self, config: TextConfig, backend: Backend = "auto") -> None:
        super().__init__()
        self.backend: Backend = backend
        self.recompute = False
        width, hidden_size = config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.n_routed_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.n_routed_experts, hidden_size, width))
        self.lora: nn.Module | None = None
        self.exchange: ExpertExchange | None = None

    @property
    def num_local_experts(self) -> int:
        """Experts held here."""
        return self.gate_up_proj.shape[0]

    def forward(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts, [T, d]; ids count all experts of the layer."""
        if self.exchange is not None:
            return self.exchange(hidden_td, expert_ids_tk, weights_tk, self._compute)
        return self._compute(hidden_td, expert_ids_tk, weights_tk)

    def _compute(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor) -> Tensor:
        lora: ExpertLora | None = self.lora.kernel_lora() if self.lora is not None else None  # type: ignore[operator]
        gate_up, down = (stack.value() if isinstance(stack, QuantisedStack) else stack for stack in (self.gate_up_proj, self.down_proj))
        return experts(hidden_td, gate_up, down, expert_ids_tk, weights_tk, lora=lora, recompute=self.recompute, backend=self.backend)


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, hidden_td: Tensor) -> Tensor:
        """Apply to each token."""
        return self.down_proj(F.silu(self.gate_proj(hidden_td)) * self.up_proj(hidden_td))


class Mistral4MoE(nn.Module):
    """Routed experts plus the shared expert.

    Attributes:
        expert_counts_e: int64, tokens that the last forward sent to each expert of the layer; None before the first.
    """

    def __init__(self, config: TextConfig, backend: Backend = "auto") -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.gate = Mistral4Router(config)
        self.experts = Mistral4Experts(config, backend)
        self.shared_experts = GatedMLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)
        self.expert_counts_e: Tensor | None = None

    def forward(self, hidden_td: Tensor) -> Tensor:
        """Apply to each token."""
        weights_tk, expert_ids_tk = self.gate(hidden_td)
        self.expert_counts_e = torch.bincount(expert_ids_tk.flatten(), minlength=self.num_experts)
        return self.experts(hidden_td, expert_ids_tk, weights_tk) + self.shared_experts(hidden_td)
