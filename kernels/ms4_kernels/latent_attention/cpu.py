"""Absorbed attention over paged latents in plain torch, for CPUs and for devices without Triton.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_cpu.py``.

Shape suffixes: t new tokens, h heads, m latent and rotary key, c latent; n blocks, s tokens of a block; b sequences, p positions of one
sequence (of the longest one in a batch), q tokens of one sequence, r = q * h rows.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from ms4_kernels.invariant.switch import is_on
from ms4_kernels.latent_attention.plan import LatentPlan

MAX_FP8 = 448.0
_MOST_SCORES = 1 << 22
"""Scores that exist at once, 16 MiB of them, where one token has no more."""


def attend_cpu(query_thm: Tensor, pool_nsm: Tensor, plan: LatentPlan, scale: float, latent_rank: int) -> Tensor:
    """Return [T, h, c]; arguments as those of :func:`ms4_kernels.latent_attention.latent_attention`.

    In the batch-invariant mode each token is computed alone, over exactly the positions that it sees.
    """
    if is_on():
        starts, sequences = plan.position_t.tolist(), plan.sequence_t.tolist()
        lengths = (1,) * len(starts)
    elif plan.lengths is None:
        return _decode(query_thm, pool_nsm, plan, scale, latent_rank)
    else:
        assert plan.starts is not None
        lengths, starts, sequences = plan.lengths, plan.starts, range(len(plan.lengths))
    mixed_thc = query_thm.new_zeros(*query_thm.shape[:2], latent_rank)
    firsts = accumulate(lengths, initial=0)
    for first, length, start, sequence in zip(firsts, lengths, starts, sequences, strict=False):
        if start < 0:
            continue
        seen_pm = _context(pool_nsm, plan.tables_bj[sequence], start + length, query_thm.dtype)
        step = max(1, _MOST_SCORES // (query_thm.shape[1] * (start + length)))
        for done in range(0, length, step):
            count = min(step, length - done)
            rows = slice(first + done, first + done + count)
            seen = seen_pm[: start + done + count]
            mixed_thc[rows] = _attend_run(query_thm[rows], seen, start + done, scale, latent_rank)
    return mixed_thc


def write_latents_cpu(pool_nsm: Tensor, latent_tm: Tensor, slot_t: Tensor) -> None:
    """As :func:`ms4_kernels.latent_attention.write_latents`."""
    flat_xm = pool_nsm.view(-1, pool_nsm.shape[-1])
    if pool_nsm.dtype == torch.float8_e4m3fn:  # not every release of torch clips what is too large
        latent_tm, flat_xm = latent_tm.clamp(-MAX_FP8, MAX_FP8).to(pool_nsm.dtype).view(torch.uint8), flat_xm.view(torch.uint8)
    real_t = slot_t >= 0
    flat_xm[slot_t[real_t]] = latent_tm[real_t].to(flat_xm.dtype)


def _context(pool_nsm: Tensor, table_j: Tensor, stop: int, dtype: torch.dtype) -> Tensor:
    """The first ``stop`` latents of one sequence, [p, m]."""
    blocks = table_j[: -(-stop // pool_nsm.shape[1])].long()
    return pool_nsm[blocks].flatten(0, 1)[:stop].to(dtype)


def _attend_run(query_qhm: Tensor, seen_pm: Tensor, start: int, scale: float, latent_rank: int) -> Tensor:
    """Attend with tokens ``start ..`` of one sequence, the last of which sees all positions given; returns [q, h, c]."""
    count, heads, _ = query_qhm.shape
    scores_rp = (query_qhm.flatten(0, 1) @ seen_pm.t()).to(torch.promote_types(query_qhm.dtype, torch.float32)) * scale
    scores_qhp = scores_rp.view(count, heads, -1)
    if count > 1:
        place_p = torch.arange(seen_pm.shape[0], device=seen_pm.device)
        hidden_qp = place_p > torch.arange(start, start + count, device=seen_pm.device)[:, None]
        scores_qhp.masked_fill_(hidden_qp[:, None], -torch.inf)
    weights_rp = scores_qhp.softmax(dim=-1).flatten(0, 1).to(query_qhm.dtype)
    return (weights_rp @ seen_pm[:, :latent_rank]).view(count, heads, latent_rank)


def _decode(query_bhm: Tensor, pool_nsm: Tensor, plan: LatentPlan, scale: float, latent_rank: int) -> Tensor:
    """One token of each sequence, all at once over positions padded to the longest one."""
    longest = max(int(plan.position_t.max()) + 1, 1)
    blocks = -(-longest // pool_nsm.shape[1])
    place_p = torch.arange(longest, device=pool_nsm.device)
    hidden_bp = place_p > plan.position_t[:, None]
    # Entries of a table past the sequence's last token may be no blocks at all, and what lies in unwritten ones may be NaN.
    table_bj = plan.tables_bj[:, :blocks].long().masked_fill(hidden_bp[:, :: pool_nsm.shape[1]], 0)
    seen_bpm = pool_nsm[table_bj].flatten(1, 2)[:, :longest].to(query_bhm.dtype, copy=True).masked_fill_(hidden_bp[..., None], 0)
    scores_bhp = torch.bmm(query_bhm, seen_bpm.transpose(1, 2)).to(torch.promote_types(query_bhm.dtype, torch.float32)) * scale
    hidden_bp = hidden_bp & (plan.position_t >= 0)[:, None]  # a row of nothing but -inf would be NaN; padding mixes zeros
    weights_bhp = scores_bhp.masked_fill_(hidden_bp[:, None], -torch.inf).softmax(dim=-1).to(query_bhm.dtype)
    return torch.bmm(weights_bhp, seen_bpm[..., :latent_rank])
