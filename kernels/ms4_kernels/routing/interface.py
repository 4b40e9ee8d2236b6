"""The one entrance to routing: which experts a token goes to and with which weights, the rows in the experts' order, and their tiles.

Exercise it: ``pytest tests/kernels/ms4_kernels/routing``.

Shape suffixes: t tokens, e experts, k experts per token.
"""

from __future__ import annotations

from torch import Tensor

from ms4_kernels.dispatch import Backend, choose
from ms4_kernels.routing.cpu import route_cpu
from ms4_kernels.routing.reference import route_reference
from ms4_kernels.routing.sorting import ExpertOrder, sort_by_expert
from ms4_kernels.routing.tile_list import TileList, tile_list

__all__ = ["ExpertOrder", "TileList", "route", "sort_by_expert", "tile_list"]


def route(
    logits_te: Tensor, top_k: int, renormalize: bool = True, scale: float = 1.0, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token (spec section 2.1).

    The choice is made on the logits. Softmax keeps their order, but its rounding, which differs between devices, makes new ties.

    Args:
        logits_te: [T, E] router logits. Half precision is widened to fp32: near-ties would otherwise depend on rounding. A token with a NaN
            or +inf among its logits, or nothing but -inf, gets NaN weights and K distinct ids in range, which ones is not defined.
        top_k: experts per token.
        renormalize: divide the chosen probabilities by their sum + 1e-20.
        scale: factor on the weights afterwards (``routed_scaling_factor``).
        backend: ``auto`` takes the fastest that serves the device.

    Returns:
        (weights_tk, expert_ids_tk): fp32 (fp64 for fp64 logits) [T, K], differentiable once in the logits, and int64 [T, K], likeliest
        first, equally likely ones by their ids.

    Raises:
        ValueError: ``top_k`` lies outside ``1 .. E``, logits that are no matrix, or a backend that is unknown or cannot run here.
    """
    if logits_te.ndim != 2:
        raise ValueError(f"router logits are {list(logits_te.shape)}, expected [T, E]")
    if not 0 < top_k <= logits_te.shape[1]:
        raise ValueError(f"top_k must lie in 1..{logits_te.shape[1]}, got {top_k}")
    chosen = choose("routing", backend, logits_te)
    if chosen == "triton":
        from ms4_kernels.routing.router_triton import route_triton  # Triton is optional

        return route_triton(logits_te, top_k, renormalize, scale)
    return (route_cpu if chosen == "cpu" else route_reference)(logits_te, top_k, renormalize, scale)
