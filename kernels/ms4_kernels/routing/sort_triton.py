"""A stable counting sort of (token, slot) pairs by segment, in Triton, without atomics: count per block of pairs, add up, place.

A pair's row is the first row of its segment, plus the pairs of that segment in earlier blocks, plus those before it in its own block. The
segment after the last one takes the pairs without an expert, and with them those whose expert or adapter is out of range.
Imported by ``sorting`` only where Triton runs. Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_sort_triton.py``.

Shape suffixes: t tokens, k experts per token, e experts, s segments and the one for pairs out of range, b blocks, r rows or pairs of
a block.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel is given has types of Triton's own

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ms4_kernels.routing.sorting import ExpertOrder

NUM_WARPS = 4
BLOCK_R = 128
BLOCK_S = 64
SCAN_BLOCKS = 64
SCAN_SEGMENTS = 32


@triton.jit
def _segment(ids, adapters, pair_r, num_pairs, num_experts, num_adapters, TOP_K: tl.constexpr, HAS_ADAPTERS: tl.constexpr):
    """The segment of each pair: num_experts * (num_adapters + 1) where it is out of range, -1 for no pair."""
    is_pair_r = pair_r < num_pairs
    id_r = tl.load(ids + pair_r, mask=is_pair_r, other=0)
    is_good_r = (id_r >= 0) & (id_r < num_experts)
    slot_r = tl.zeros_like(id_r)
    if HAS_ADAPTERS:
        slot_r = tl.load(adapters + pair_r // TOP_K, mask=is_pair_r, other=-1) + 1
        is_good_r = is_good_r & (slot_r >= 0) & (slot_r <= num_adapters)
    # Chosen before they are multiplied: what is out of range could overflow.
    id_r = tl.where(is_good_r, id_r, num_experts)
    segment_r = id_r * (num_adapters + 1) + tl.where(is_good_r, slot_r, 0)
    return tl.where(is_pair_r, segment_r, -1).to(tl.int32)


@triton.jit
def count_kernel(
    ids, adapters, counts, num_pairs, num_experts, num_adapters, num_segments,
    TOP_K: tl.constexpr, HAS_ADAPTERS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write counts int32 [blocks, segments]: program (b, c) those of block b in the c-th BLOCK_S segments."""
    block = tl.program_id(0)
    pair_r = block * BLOCK_R + tl.arange(0, BLOCK_R)
    segment_r = _segment(ids, adapters, pair_r, num_pairs, num_experts, num_adapters, TOP_K, HAS_ADAPTERS)
    segment_s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    counts_s = tl.sum((segment_r[:, None] == segment_s[None, :]).to(tl.int32), 0)
    tl.store(counts + block.to(tl.int64) * num_segments + segment_s, counts_s, mask=segment_s < num_segments)


@triton.jit
def scan_kernel(counts, totals, num_blocks, num_segments, SCAN_BLOCKS: tl.constexpr, SCAN_SEGMENTS: tl.constexpr):
    """Replace counts [blocks, segments] by the sum of the blocks before, and write totals [segments]."""
    segment_s = tl.program_id(0) * SCAN_SEGMENTS + tl.arange(0, SCAN_SEGMENTS)
    is_segment_bs = (segment_s < num_segments)[None, :]
    sum_s = tl.zeros((SCAN_SEGMENTS,), tl.int32)
    for first in range(0, num_blocks, SCAN_BLOCKS):
        block_b = first + tl.arange(0, SCAN_BLOCKS)
        place_bs = counts + block_b[:, None].to(tl.int64) * num_segments + segment_s[None, :]
        mask_bs = (block_b < num_blocks)[:, None] & is_segment_bs
        counts_bs = tl.load(place_bs, mask=mask_bs, other=0)
        tl.store(place_bs, sum_s[None, :] + tl.cumsum(counts_bs, 0) - counts_bs, mask=mask_bs)
        sum_s += tl.sum(counts_bs, 0)
    tl.store(totals + segment_s, sum_s, mask=segment_s < num_segments)


@triton.jit
def place_kernel(
    ids, adapters, before, totals, ends, pairs, rows, num_pairs, num_experts, num_adapters, num_segments, num_rows,
    TOP_K: tl.constexpr, HAS_ADAPTERS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write the row of each pair, int64 [pairs], -1 for one without an expert, and the pair of each row, int64 [num_rows]."""
    block = tl.program_id(0)
    index_r = tl.arange(0, BLOCK_R)
    pair_r = block * BLOCK_R + index_r
    segment_r = _segment(ids, adapters, pair_r, num_pairs, num_experts, num_adapters, TOP_K, HAS_ADAPTERS)
    is_earlier_rr = (segment_r[:, None] == segment_r[None, :]) & (index_r[None, :] < index_r[:, None])
    rank_r = tl.sum(is_earlier_rr.to(tl.int32), 1)
    is_pair_r = pair_r < num_pairs
    first_r = tl.load(ends + segment_r, mask=is_pair_r, other=0) - tl.load(totals + segment_r, mask=is_pair_r, other=0)
    before_r = tl.load(before + block.to(tl.int64) * num_segments + segment_r, mask=is_pair_r, other=0)
    row_r = first_r + before_r + rank_r
    has_expert_r = segment_r < num_segments - 1
    tl.store(rows + pair_r, tl.where(has_expert_r, row_r, -1).to(tl.int64), mask=is_pair_r)
    tl.store(pairs + row_r, pair_r.to(tl.int64), mask=is_pair_r & (row_r < num_rows))


def sort_triton(
    expert_ids_tk: Tensor, num_experts: int, adapter_t: Tensor | None = None, num_adapters: int = 0, num_rows: int | None = None
) -> ExpertOrder:
    """Arguments and result as for :func:`ms4_kernels.routing.sort_by_expert`; nothing waits for the device.

    Raises:
        ValueError: 2^31 pairs and more.
    """
    num_pairs, device = expert_ids_tk.numel(), expert_ids_tk.device
    if num_pairs >= 2**31 - BLOCK_R:
        raise ValueError(f"{num_pairs} (token, slot) pairs do not fit 32-bit rows")
    if adapter_t is None:
        num_adapters = 0
    segments = num_experts * (num_adapters + 1)
    num_rows = num_pairs if num_rows is None else min(num_rows, num_pairs)
    pairs_r = torch.empty(num_rows, dtype=torch.int64, device=device)
    rows_tk = torch.empty(expert_ids_tk.shape, dtype=torch.int64, device=device)
    if num_pairs:
        ids_tk = expert_ids_tk.contiguous()
        adapter_t = None if adapter_t is None else adapter_t.contiguous()
        num_blocks, num_segments = -(-num_pairs // BLOCK_R), segments + 1
        counts_bs = torch.empty(num_blocks, num_segments, dtype=torch.int32, device=device)
        totals_s = torch.empty(num_segments, dtype=torch.int32, device=device)
        sizes = (num_pairs, num_experts, num_adapters, num_segments)
        options: dict[str, Any] = {"TOP_K": ids_tk.shape[1], "HAS_ADAPTERS": adapter_t is not None, "BLOCK_R": BLOCK_R}
        options["num_warps"] = NUM_WARPS
        scan_options: dict[str, Any] = {"SCAN_BLOCKS": SCAN_BLOCKS, "SCAN_SEGMENTS": SCAN_SEGMENTS, "num_warps": NUM_WARPS}
        count_options: dict[str, Any] = {**options, "BLOCK_S": BLOCK_S}
        segment_chunks = -(-num_segments // BLOCK_S)
        with torch.cuda.device_of(ids_tk):
            count_kernel[num_blocks, segment_chunks](ids_tk, adapter_t, counts_bs, *sizes, **count_options)
            scan_kernel[-(-num_segments // SCAN_SEGMENTS),](counts_bs, totals_s, num_blocks, num_segments, **scan_options)
            all_ends_s = totals_s.cumsum(0, dtype=torch.int32)
            place_kernel[num_blocks,](ids_tk, adapter_t, counts_bs, totals_s, all_ends_s, pairs_r, rows_tk, *sizes, num_rows, **options)
        ends_s = all_ends_s[:-1]
    else:
        ends_s = torch.zeros(segments, dtype=torch.int32, device=device)
    if adapter_t is None:
        return ExpertOrder(pairs_r, rows_tk, ends_s)
    return ExpertOrder(pairs_r, rows_tk, ends_s[num_adapters :: num_adapters + 1].contiguous(), ends_s)
