"""The one entrance to attention over paged latents, and to writing them; it checks shapes and picks the implementation.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention``.

Shape suffixes: t new tokens, h heads, m latent and rotary key as cached, c latent; n blocks, s tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_kernels.dispatch import Backend, choose
from ms4_kernels.latent_attention.cpu import attend_cpu, write_latents_cpu
from ms4_kernels.latent_attention.plan import LatentPlan
from ms4_kernels.latent_attention.reference import attend_reference

__all__ = ["latent_attention", "write_latents"]

MOST_HEADS, MOST_HEADS_FP32 = 128, 32
"""That one Triton program takes."""
_POOL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def latent_attention(
    query_thm: Tensor,
    pool_nsm: Tensor,
    plan: LatentPlan,
    *,
    scale: float,
    latent_rank: int,
    num_splits: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention of absorbed queries over the latents of their sequences (spec section 2.1): one key and value for all heads.

    Args:
        query_thm: [T, h, m] queries of the new tokens: in the latent's space and, behind it, rotary.
        pool_nsm: [n, s, m] one layer's cache, the new tokens' latents written already; fp32, bf16, fp16, or E4M3 without scale.
            Values are widened or rounded to the type of the queries.
        plan: tokens and block tables, one object for all layers of a pass.
        scale: factor on the products of queries and keys.
        latent_rank: c, the leading part of the m values, which is also the value.
        num_splits: parts into which Triton cuts what each token sees; then a token's result depends on itself and its context alone. None:
            as many as fill the device, or one number for all calls inside ``batch_invariant()``.
        backend: ``auto`` takes Triton on a GPU, torch elsewhere; ``reference`` goes token by token.

    Returns:
        [T, h, c] in the type of the queries; not differentiable. Zeros for padding.

    Raises:
        ValueError: shapes or types that do not fit, or a backend that cannot run.
    """
    _check(query_thm, pool_nsm, plan, latent_rank, num_splits)
    most = MOST_HEADS_FP32 if query_thm.dtype == torch.float32 else MOST_HEADS
    chosen = choose("latent attention", backend, query_thm, has_kernel=query_thm.shape[1] <= most)
    if chosen == "triton":
        from ms4_kernels.latent_attention.launch import attend_triton  # needs Triton

        return attend_triton(query_thm, pool_nsm, plan, scale, latent_rank, num_splits)
    return (attend_cpu if chosen == "cpu" else attend_reference)(query_thm, pool_nsm, plan, scale, latent_rank)


def write_latents(pool_nsm: Tensor, latent_tm: Tensor, slot_t: Tensor, *, backend: Backend = "auto") -> None:
    """Write the new tokens' latents to one layer's cache.

    Args:
        pool_nsm: [n, s, m], contiguous, changed in place. E4M3 rounds to nearest even and clips at 448; NaN stays NaN.
        latent_tm: [T, m].
        slot_t: int64 [T], block * s + offset, each at most once; negative ones are not written. See ``LatentPlan.slots``.
        backend: as above.

    Raises:
        ValueError: shapes or types that do not fit, or a backend that cannot run.
    """
    if pool_nsm.dim() != 3 or not pool_nsm.is_contiguous() or latent_tm.shape != (slot_t.shape[0], pool_nsm.shape[2]):
        raise ValueError(f"pool {list(pool_nsm.shape)}, latents {list(latent_tm.shape)} and slots {list(slot_t.shape)} do not fit")
    if slot_t.dtype != torch.int64:
        raise ValueError(f"slots are {slot_t.dtype}, expected int64")
    if choose("latent writing", backend, latent_tm) == "triton":
        from ms4_kernels.latent_attention.launch import write_triton  # needs Triton

        return write_triton(pool_nsm, latent_tm, slot_t)
    return write_latents_cpu(pool_nsm, latent_tm, slot_t)


def _check(query_thm: Tensor, pool_nsm: Tensor, plan: LatentPlan, latent_rank: int, num_splits: int | None) -> None:
    if query_thm.dim() != 3 or pool_nsm.dim() != 3 or query_thm.shape[2] != pool_nsm.shape[2]:
        raise ValueError(f"queries {list(query_thm.shape)} and pool {list(pool_nsm.shape)} are not [T, h, m] and [n, s, m]")
    if query_thm.shape[0] != plan.num_tokens:
        raise ValueError(f"{query_thm.shape[0]} queries, but a plan of {plan.num_tokens} tokens")
    if not 0 < latent_rank <= query_thm.shape[2]:
        raise ValueError(f"latent_rank {latent_rank} does not lie in 1..{query_thm.shape[2]}")
    if pool_nsm.dtype not in _POOL_DTYPES or not pool_nsm.is_contiguous():
        raise ValueError(f"the pool is {pool_nsm.dtype} with strides {pool_nsm.stride()}; it must be contiguous and floating")
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}")
    devices = {str(x.device) for x in (query_thm, pool_nsm, plan.tables_bj)}
    if len(devices) > 1:
        raise ValueError(f"tensors on several devices: {', '.join(sorted(devices))}")
