"""Tokens in the order of their experts (and of their adapters within an expert), and back.

Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_sorting.py``.

Shape suffixes: t tokens, k experts per token, e experts, s segments of rows (expert, adapter), r = t*k rows sorted by segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ms4_kernels.dispatch import Backend, choose

_RADIX_SEGMENTS = 1 << 16


@dataclass(frozen=True)
class ExpertOrder:
    """How the (token, slot) pairs that have an expert lie when sorted by it: R rows, T*K of them where no slot is empty.

    Unpacks to its first three tensors, which every order has and a backward saves.

    Attributes:
        pair_r: int64, the pair ``t * K + k`` that each sorted row belongs to; rows of one segment keep the tokens' order. Where Triton
            sorts and nobody says how many rows there are, the pairs without an expert lie behind the last segment.
        row_tk: int64, the inverse: the sorted row of each pair, -1 for one without an expert.
        ends_e: int32, one past the last row of each expert (running sum of the counts); the last one is R.
        segment_ends_s: int32 [E * (L + 1)], one past the last row of segment ``expert * (L + 1) + adapter + 1``, where the rows were sorted
            by adapter too (L adapters; the first segment of an expert are its rows without one); else None.
    """

    pair_r: Tensor
    row_tk: Tensor
    ends_e: Tensor
    segment_ends_s: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.pair_r, self.row_tk, self.ends_e))

    @property
    def token_r(self) -> Tensor:
        """The token of each sorted row, int64 [R]."""
        return self.pair_r // self.row_tk.shape[1]


def sort_by_expert(
    expert_ids_tk: Tensor,
    num_experts: int,
    *,
    adapter_t: Tensor | None = None,
    num_adapters: int = 0,
    num_rows: int | None = None,
    backend: Backend = "auto",
) -> ExpertOrder:
    """Sort (stable, hence deterministic) the pairs of a routing by expert, and by adapter within an expert if given.

    Args:
        expert_ids_tk: int64 [T, K], each in ``0 .. num_experts - 1``, or -1: no expert in this slot.
        num_experts: E.
        adapter_t: int64 [T], the LoRA adapter of each token, ``0 .. num_adapters - 1``, or -1 for none.
        num_adapters: L, meant only with ``adapter_t``.
        num_rows: how many slots have an expert, where the caller knows: the Triton path, which does not look, then makes room for no more.
        backend: ``reference`` is torch's stable argsort; ``auto`` takes the fastest that serves the device.

    Returns:
        The order, on the device of the ids.

    Raises:
        ValueError: shapes that do not fit, or, on the CPU, an id, an adapter or a number of rows that is wrong. The Triton path does not
            wait for the device to look at them: there a pair whose expert or adapter is out of range counts as one without an expert, and
            ``num_rows`` is believed.
    """
    if expert_ids_tk.is_floating_point() or (adapter_t is not None and adapter_t.is_floating_point()):
        raise ValueError("expert ids and adapters are integers")
    if expert_ids_tk.ndim != 2 or (adapter_t is not None and adapter_t.shape != expert_ids_tk.shape[:1]):
        raise ValueError(f"ids {list(expert_ids_tk.shape)} are not [T, K], or {num_adapters} adapters are not given for each token")
    # The device decides; ids have no floating type, which is what dispatch asks about.
    chosen = choose("token sort", backend, torch.empty(0, device=expert_ids_tk.device))
    if chosen == "triton":
        from ms4_kernels.routing.sort_triton import sort_triton  # Triton is optional

        return sort_triton(expert_ids_tk, num_experts, adapter_t, num_adapters, num_rows)
    segment_r, num_segments, has_empty = _segments(expert_ids_tk, num_experts, adapter_t, num_adapters)
    counts_s = torch.bincount(segment_r, minlength=num_segments + has_empty)
    pair_r = segment_r.argsort(stable=True) if chosen == "reference" else _stable_argsort(segment_r, num_segments + has_empty)
    if has_empty:
        counts_s, num_empty = counts_s[:-1], int(counts_s[-1])
        pair_r = pair_r[: pair_r.numel() - num_empty].clone()  # clone: a view would keep the whole list alive
    if num_rows is not None and num_rows != pair_r.numel():
        raise ValueError(f"{pair_r.numel()} slots have an expert, not {num_rows}")
    row_tk = pair_r.new_full(segment_r.shape, -1) if has_empty else torch.empty_like(pair_r)
    row_tk.scatter_(0, pair_r, torch.arange(pair_r.numel(), device=pair_r.device))
    ends_s = counts_s.cumsum(0).to(torch.int32)
    ends_e = ends_s if adapter_t is None else ends_s[num_adapters :: num_adapters + 1].contiguous()
    return ExpertOrder(pair_r, row_tk.view(expert_ids_tk.shape), ends_e, None if adapter_t is None else ends_s)


def _segments(expert_ids_tk: Tensor, num_experts: int, adapter_t: Tensor | None, num_adapters: int) -> tuple[Tensor, int, bool]:
    """The segment of each pair, int64 [T*K], how many there are, and whether there are pairs without an expert, which then form one more
    segment behind the others; refuses what is out of range."""
    has_empty = _lowest("expert id", expert_ids_tk, num_experts, f"a layer of {num_experts} experts") < 0
    num_segments = num_experts
    segment_tk = expert_ids_tk
    if adapter_t is not None:
        _lowest("adapter", adapter_t, num_adapters, f"a batch of {num_adapters} adapters")
        num_segments = num_experts * (num_adapters + 1)
        # As int64: a narrow type could not hold the product.
        segment_tk = expert_ids_tk.long() * (num_adapters + 1) + (adapter_t + 1).unsqueeze(1)
    if has_empty:
        segment_tk = torch.where(expert_ids_tk < 0, num_segments, segment_tk.long())
    return segment_tk.reshape(-1), num_segments, has_empty


def _lowest(what: str, values: Tensor, stop: int, where: str) -> int:
    """The least of values that must lie in ``-1 .. stop - 1``; 0 where there are none."""
    if values.numel() == 0:
        return 0
    low, high = (int(bound) for bound in values.aminmax())
    if low < -1 or high >= stop:
        raise ValueError(f"{what} {low if low < -1 else high} in {where}")
    return low


def _stable_argsort(segment_r: Tensor, num_segments: int) -> Tensor:
    """NumPy sorts 16-bit keys by radix: 22 us for 8192 rows on one thread of a Xeon, where torch takes 205."""
    if segment_r.device.type != "cpu" or num_segments > _RADIX_SEGMENTS:
        return segment_r.argsort(stable=True)
    return torch.from_numpy(np.argsort(segment_r.numpy().astype(np.uint16), kind="stable"))
