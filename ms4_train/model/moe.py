"""The mixture-of-experts block: router, routed experts as two stacked parameters, shared expert (spec sections 2.1 and 2.2).

Exercise it: ``pytest tests/ms4_train/model/test_moe.py``.

Shape suffixes: t tokens, k experts per token, e experts, d hidden, n expert intermediate, i = 2n (gate rows, then up rows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms4_kernels.dispatch import Backend
from ms4_kernels.moe import ExpertLora, experts
from ms4_kernels.native.linear import linear
from ms4_kernels.routing import route
from ms4_train.model.config import TextConfig
from ms4_train.model.linear import Linear, joined_weight
from ms4_train.model.quantised import QuantisedStack
from ms4_train.model.router_terms import RouterRecorder
from ms4_train.model.row_segments import current_segments


class Arrivals(NamedTuple):
    """Tokens that came to this rank's experts, from this rank and others; r rows.

    Attributes:
        hidden_rd: hidden states.
        expert_ids_rk: int64, ids among this rank's experts; -1: the expert in this slot lives elsewhere.
        weights_rk: routing weights.
        adapter_r: int64, the index of each row's adapter as ``row_indices`` of the adapter counts them; None: all rows take what acts.
        num_pairs: slots that have an expert here.
    """

    hidden_rd: Tensor
    expert_ids_rk: Tensor
    weights_rk: Tensor
    adapter_r: Tensor | None
    num_pairs: int


class DispatchedTokens(Protocol):
    """Tokens on their way to experts of other ranks: ``ms4_train.parallel.exchange_flight.Dispatched``.

    ``hidden_rd`` and ``weights_rk`` stand for what will arrive. They go through the call of the experts module like any input, so that
    hooks on it see where its backward begins and ends.
    """

    hidden_rd: Tensor
    weights_rk: Tensor

    def finish(self, hidden_rd: Tensor, weights_rk: Tensor, compute: Callable[[Arrivals], Tensor]) -> Tensor:
        """Wait for the tokens, let ``compute`` make a weighted row of each, and return the sums over a token's experts, [T, d]."""
        ...

    def abandon(self) -> None:
        """Wait for tokens that nobody will take."""
        ...


class TokenExchange(Protocol):
    """Sends tokens to the ranks that hold their experts: ``ms4_train.parallel.exchange.ExpertExchange``."""

    def start(
        self,
        hidden_td: Tensor,
        expert_ids_tk: Tensor,
        weights_tk: Tensor,
        adapter_of_rows: Callable[[int], Tensor] | None = None,
        *,
        by_adapter: bool = False,
    ) -> DispatchedTokens:
        """Send them; what is computed before ``finish`` runs while they travel."""
        ...


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
        lora: an adapter over the stacks, if any; its ``kernel_lora()`` returns an :class:`ExpertLora`, and where rows are for several
            adapters (``row_segments``) its ``row_lora(rows)`` several of them with the index of each row; where rows travel,
            ``row_indices(rows)`` gives the indices and ``every_lora()`` what they count.
        exchange: sends tokens to the ranks that hold their experts; None where all are here.
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
        self.exchange: TokenExchange | None = None

    @property
    def num_local_experts(self) -> int:
        """Experts held here."""
        return self.gate_up_proj.shape[0]

    def start_exchange(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor) -> DispatchedTokens:
        """Send the tokens to their experts; :meth:`forward` takes what this returns. Needs an exchange, and none of the weights."""
        assert self.exchange is not None
        indices = None if self.lora is None else self.lora.row_indices
        by_adapter = indices is not None and current_segments() is not None
        return self.exchange.start(hidden_td, expert_ids_tk, weights_tk, indices, by_adapter=by_adapter)  # type: ignore[arg-type]

    def forward(
        self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor, *, dispatched: DispatchedTokens | None = None
    ) -> Tensor:
        """Return the weighted sum of each token's experts, [T, d]; ids count all experts of the layer.

        ``dispatched``: of these tokens, where they are under way already; its stand-ins are then ``hidden_td`` and ``weights_tk``.
        """
        if self.exchange is None:
            lora, adapter_t = self._adapters(hidden_td.shape[0])
            return self._compute(hidden_td, expert_ids_tk, weights_tk, lora, adapter_t)
        if dispatched is None:
            dispatched = self.start_exchange(hidden_td, expert_ids_tk, weights_tk)
            hidden_td, weights_tk = dispatched.hidden_rd, dispatched.weights_rk
        return dispatched.finish(hidden_td, weights_tk, self._compute_arrived)

    def _compute(
        self,
        hidden_td: Tensor,
        expert_ids_tk: Tensor,
        weights_tk: Tensor,
        lora: ExpertLora | None,
        adapter_t: Tensor | None,
        num_rows: int | None = None,
    ) -> Tensor:
        gate_up, down = (stack.value() if isinstance(stack, QuantisedStack) else stack for stack in (self.gate_up_proj, self.down_proj))
        options: dict[str, Any] = {"lora": lora, "adapter_t": adapter_t, "recompute": self.recompute, "backend": self.backend}
        return experts(hidden_td, gate_up, down, expert_ids_tk, weights_tk, num_rows=num_rows, **options)

    def _compute_arrived(self, arrivals: Arrivals) -> Tensor:
        lora, adapter_r = None, arrivals.adapter_r
        if self.lora is not None:
            lora = self.lora.kernel_lora() if adapter_r is None else self.lora.every_lora()  # type: ignore[operator]
        if lora is None:
            adapter_r = None
        return self._compute(*arrivals[:3], lora, adapter_r, arrivals.num_pairs)

    def _adapters(self, rows: int) -> tuple[ExpertLora | None, Tensor | None]:
        """The adapter, and where rows are for several ones, which of them each row takes."""
        if self.lora is None:
            return None, None
        if current_segments() is None:
            return self.lora.kernel_lora(), None  # type: ignore[operator]
        return self.lora.row_lora(rows)  # type: ignore[operator]

    def release_decode(self) -> None:
        """Drop what the adapters keep of their values, which may change now."""
        if self.lora is not None:
            self.lora.release_decode()  # type: ignore[operator]


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)
        self._gate_up_id: Tensor | None = None

    def forward(self, hidden_td: Tensor) -> Tensor:
        """Apply to each token."""
        if self._gate_up_id is not None:
            gate_tn, up_tn = linear(hidden_td, self._gate_up_id).chunk(2, dim=-1)
        else:
            gate_tn, up_tn = self.gate_proj(hidden_td), self.up_proj(hidden_td)
        return self.down_proj(F.silu(gate_tn) * up_tn)

    def prepare_decode(self) -> None:
        """Keep a copy of gate and up as one matrix, where both are plain, until :meth:`release_decode`: one product instead of two."""
        self._gate_up_id = joined_weight(self.gate_proj, self.up_proj)

    def release_decode(self) -> None:
        """Drop the copy."""
        self._gate_up_id = None


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
        self.expert_counts_e = _counts(expert_ids_tk, self.num_experts)
        if isinstance(self.experts, Mistral4Experts) and self.experts.exchange is not None:
            return self._forward_spread(hidden_td, expert_ids_tk, weights_tk)
        return self.experts(hidden_td, expert_ids_tk, weights_tk) + self.shared_experts(hidden_td)

    def _forward_spread(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor) -> Tensor:
        """The shared expert computes while tokens travel, and its backward runs while their gradients do."""
        dispatched = self.experts.start_exchange(hidden_td, expert_ids_tk, weights_tk)
        try:
            shared_td = self.shared_experts(hidden_td)
            routed_td = self.experts(dispatched.hidden_rd, expert_ids_tk, dispatched.weights_rk, dispatched=dispatched)
        except Exception:  # also how activation checkpointing ends a recomputation that has gone far enough
            dispatched.abandon()
            raise
        return routed_td + shared_td


def _counts(expert_ids_tk: Tensor, num_experts: int) -> Tensor:
    """How often each id occurs, int64 [E]. ``bincount`` would make the host wait for a GPU, to learn the largest id."""
    counts_e = torch.zeros(num_experts, dtype=torch.int64, device=expert_ids_tk.device)
    flat_ids = expert_ids_tk.flatten()
    return counts_e.scatter_add_(0, flat_ids, torch.ones_like(flat_ids))
