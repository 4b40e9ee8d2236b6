"""Routings over several ranks for the experts' exchange, what one process gets for them, and the bytes that they cost by plain counting.

Shape suffixes: t tokens, k experts of a token, e experts, d hidden, n expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_kernels.moe import experts
from ms4_train.model.moe import Arrivals
from ms4_train.parallel import Mesh
from ms4_train.parallel.exchange import ExpertExchange

EXPERTS, WIDTH, HIDDEN, TOP_K = 8, 5, 8, 3
ROUTINGS = ("random", "skewed", "one_expert", "one_rank_each", "zero_tokens", "nobody", "top_1")


@dataclass(frozen=True)
class Tokens:
    """Those of one rank: hidden states fp64 [T, d], expert ids [T, K], routing weights fp64 [T, K]."""

    hidden_td: Tensor
    ids_tk: Tensor
    weights_tk: Tensor


def tokens_of_ranks(name: str, num_ranks: int) -> list[Tokens]:
    """The tokens of each rank. ``one_rank_each``: all experts of a token live on one rank; ``top_1``: a token has one, a rank no token."""
    generator = torch.Generator().manual_seed(7)
    top_k = 1 if name == "top_1" else TOP_K
    lengths = {"zero_tokens": [9, 0, 5, 0], "nobody": [0, 0, 0, 0], "top_1": [4, 0, 6, 2]}.get(name, [4, 11, 6, 2])[:num_ranks]
    found = []
    for length in lengths:
        hidden_td = torch.randn(length, HIDDEN, generator=generator, dtype=torch.float64)
        liking_te = torch.rand(length, EXPERTS, generator=generator)
        if name == "skewed":
            liking_te[:, [0, 1, 5]] += 0.7
        ids_tk = liking_te.topk(top_k).indices
        if name == "one_expert":
            ids_tk = torch.full_like(ids_tk, 5)
        if name == "one_rank_each":
            local = EXPERTS // num_ranks
            ids_tk = ids_tk % local + (torch.arange(length) % num_ranks * local).unsqueeze(1)
        found.append(Tokens(hidden_td, ids_tk, torch.rand(length, top_k, generator=generator, dtype=torch.float64)))
    return found


def make_stacks() -> list[Tensor]:
    """gate_up and down of all experts, fp64, the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(EXPERTS, *shape, generator=generator, dtype=torch.float64) for shape in ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH))]


def by_exchange(mesh: Mesh, stacks: Sequence[Tensor], own: Tokens) -> list[Tensor]:
    """Output and gradients [hidden, weights, gate_up, down] of this rank, with its experts only."""
    assert mesh.expert_parallel_group is not None
    start, stop = mesh.expert_range(EXPERTS)
    leaves = [tensor.clone().requires_grad_() for tensor in (own.hidden_td, own.weights_tk, *(stack[start:stop] for stack in stacks))]
    hidden_td, weights_tk, gate_up_eid, down_edn = leaves

    def compute(arrivals: Arrivals) -> Tensor:
        ids_rk, weights_rk = arrivals.expert_ids_rk, arrivals.weights_rk
        return experts(arrivals.hidden_rd, gate_up_eid, down_edn, ids_rk, weights_rk, num_rows=arrivals.num_pairs, backend="cpu")

    dispatched = ExpertExchange(mesh.expert_parallel_group, EXPERTS).start(hidden_td, own.ids_tk, weights_tk)
    out_td = dispatched.finish(dispatched.hidden_rd, dispatched.weights_rk, compute)
    out_td.backward(torch.linspace(-1, 1, out_td.numel(), dtype=out_td.dtype).view_as(out_td))
    gradients = [leaf.grad for leaf in leaves]
    return [out_td.detach(), *(gradient for gradient in gradients if gradient is not None)]


def by_one_process(mesh: Mesh, stacks: Sequence[Tensor], everybody: Sequence[Tokens]) -> list[Tensor]:
    """The same from one call of the operation over the tokens of all ranks, with all experts."""
    joined = [torch.cat([getattr(tokens, name) for tokens in everybody]) for name in ("hidden_td", "weights_tk", "ids_tk")]
    leaves = [tensor.clone().requires_grad_() for tensor in (*joined[:2], *stacks)]
    out_td = experts(leaves[0], leaves[2], leaves[3], joined[2], leaves[1], backend="reference")
    parts = out_td.split([len(tokens.hidden_td) for tokens in everybody])
    torch.autograd.backward(parts, [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in parts])
    offset = sum(len(tokens.hidden_td) for tokens in everybody[: mesh.rank])
    own = slice(offset, offset + len(everybody[mesh.rank].hidden_td))
    local = slice(*mesh.expert_range(EXPERTS))
    gradients = [leaf.grad for leaf in leaves]
    return [out_td[own].detach(), gradients[0][own], gradients[1][own], gradients[2][local], gradients[3][local]]  # type: ignore[index]


def counted_by_hand(ids: Sequence[Tensor], rank: int, row_bytes: int, weight_bytes: int, label_extra: int = 0) -> dict[str, list[int]]:
    """[forward, backward] bytes that a rank sends for one call: for each token and each distinct other rank that holds experts of it.

    Args:
        ids: expert ids [T, K] of each rank.
        rank: whose bytes.
        row_bytes: d times the size of an element.
        weight_bytes: size of a routing weight.
        label_extra: bytes that a row carries besides K weights and K int32 ids.
    """
    local = EXPERTS // len(ids)
    pairs = [(source, {int(e) // local for e in token} - {source}) for source, ids_tk in enumerate(ids) for token in ids_tk]
    leaving = sum(len(others) for source, others in pairs if source == rank)
    visiting = sum(rank in others for _, others in pairs)
    top_k = ids[0].shape[1]
    return {
        "dispatch": [leaving * row_bytes, leaving * row_bytes],
        "combine": [visiting * row_bytes, visiting * row_bytes],
        "metadata": [(len(ids) - 1) * 3 * 8 + leaving * (top_k * (weight_bytes + 4) + label_extra), visiting * top_k * weight_bytes],
    }
