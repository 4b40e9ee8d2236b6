"""The counting sort in the interpreter, bounds and races watched: against torch's stable sort; ids out of range; planted bugs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.routing import sort_by_expert, sort_triton

CASES = {
    "ragged": (torch.randint(0, 128, (211, 4), generator=torch.Generator().manual_seed(1)), 128),
    "one pair": (torch.tensor([[2]]), 3),
    "all to one expert": (torch.full((100, 3), 5), 8),
    "all to the last": (torch.full((100, 2), 7), 8),
    "a full block": (torch.arange(128).view(32, 4) % 7, 7),
    "empty experts": (torch.randint(0, 3, (90, 4), generator=torch.Generator().manual_seed(2)) * 20, 64),
    "one expert": (torch.zeros(70, 2, dtype=torch.int64), 1),
    "no token": (torch.zeros(0, 4, dtype=torch.int64), 6),
    "many blocks": (torch.randint(0, 5, (2100, 4), generator=torch.Generator().manual_seed(3)), 5),
}


def _equals_torch(ids_tk: torch.Tensor, num_experts: int, num_adapters: int = 0) -> bool:
    adapter_t = torch.arange(ids_tk.shape[0]) * 7 % (num_adapters + 1) - 1 if num_adapters else None
    with interpreted():
        mine = sort_by_expert(ids_tk, num_experts, adapter_t=adapter_t, num_adapters=num_adapters)
    oracle = sort_by_expert(ids_tk, num_experts, adapter_t=adapter_t, num_adapters=num_adapters, backend="reference")
    pairs = list(zip(mine, oracle, strict=True))
    if num_adapters:
        pairs.append((mine.segment_ends_s, oracle.segment_ends_s))
    return all(left.dtype == right.dtype and torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_adapters", [0, 1, 3])
def test_order_equals_that_of_torch(case, num_adapters):
    assert _equals_torch(*CASES[case], num_adapters)


def test_two_runs_agree_to_the_bit():
    ids_tk, num_experts = CASES["ragged"]
    with interpreted():
        first, second = (sort_by_expert(ids_tk, num_experts) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_ids_with_strides_are_taken_as_they_are():
    ids_kt = torch.randint(0, 9, (4, 60))
    with interpreted():
        order = sort_by_expert(ids_kt.t(), 9)
    assert torch.equal(order.pair_r, sort_by_expert(ids_kt.t().contiguous(), 9).pair_r)


@pytest.mark.parametrize("bad", [-1, 6, 2**40, -(2**62)])
@pytest.mark.parametrize("of", ["expert", "adapter"])
def test_pairs_out_of_range_lie_behind_the_last_segment(bad, of):
    ids_tk, adapter_t = torch.randint(0, 6, (80, 2)), torch.randint(-1, 3, (80,))
    good = sort_by_expert(ids_tk, 6, adapter_t=adapter_t, num_adapters=3)
    is_bad_t = torch.zeros(80, dtype=torch.bool)
    is_bad_t[[3, 40, 79]] = True
    if of == "expert":
        ids_tk = ids_tk.clone()
        ids_tk[is_bad_t] = bad
    else:
        adapter_t = adapter_t.where(~is_bad_t, bad - 1 if bad == -1 else bad)
    with interpreted():
        order = sort_by_expert(ids_tk, 6, adapter_t=adapter_t, num_adapters=3)
    is_bad_r = is_bad_t[order.token_r]
    assert order.ends_e[-1] == 160 - 6  # two pairs of each bad token
    assert is_bad_r.tolist() == [False] * 154 + [True] * 6
    assert torch.equal(order.row_tk.flatten()[order.pair_r[:154]], torch.arange(154))
    assert (order.row_tk < 0).sum() == 6
    assert torch.equal(order.pair_r[:154], good.pair_r[~is_bad_t[good.token_r]])


@pytest.mark.parametrize("num_adapters", [0, 2])
def test_room_for_the_filled_slots_only(num_adapters):
    ids_tk = CASES["ragged"][0].where(torch.rand(211, 4) < 0.3, -1)
    adapter_t = torch.randint(-1, num_adapters, (211,)) if num_adapters else None
    options = {"adapter_t": adapter_t, "num_adapters": num_adapters, "num_rows": int((ids_tk >= 0).sum())}
    with interpreted():
        mine = sort_by_expert(ids_tk, 128, **options)
    oracle = sort_by_expert(ids_tk, 128, **options, backend="reference")
    assert all(torch.equal(left, right) for left, right in zip(mine, oracle, strict=True))


def test_more_rows_than_32_bits_count_are_refused():
    with interpreted(), pytest.raises(ValueError, match="do not fit 32-bit rows"):
        sort_by_expert(torch.zeros(1, 1, dtype=torch.int64).expand(2**29, 4), 4)


BUGS = {
    "unstable rank": ("index_r[None, :] < index_r[:, None]", "index_r[None, :] > index_r[:, None]"),
    "a pair counts itself": ("index_r[None, :] < index_r[:, None]", "index_r[None, :] <= index_r[:, None]"),
    "rank of all pairs of the block": (
        "(segment_r[:, None] == segment_r[None, :]) & (index_r", "(segment_r[:, None] >= segment_r[None, :]) & (index_r"),
    "earlier blocks are forgotten": ("row_r = first_r + before_r + rank_r", "row_r = first_r + rank_r + 0 * before_r"),
    "the scan includes its own block": ("tl.cumsum(counts_bs, 0) - counts_bs", "tl.cumsum(counts_bs, 0)"),
    "the scan forgets the blocks before": ("tl.store(place_bs, sum_s[None, :] + ", "tl.store(place_bs, "),
    "pairs past the end are placed": (
        "is_pair_r = pair_r < num_pairs\n    first_r", "is_pair_r = pair_r >= 0\n    segment_r = tl.maximum(segment_r, 0)\n    first_r"),
    "ids are trusted": ("is_good_r = (id_r >= 0) & (id_r < num_experts)", "is_good_r = id_r == id_r"),
    "the adapter of the wrong token": ("adapters + pair_r // TOP_K", "adapters + pair_r % TOP_K"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch, tmp_path: Path):
    """By a wrong order, or by the interpreter's check of bounds and races."""

    def is_accepted() -> bool:
        ids_tk = torch.cat([CASES["ragged"][0], torch.full((1, 4), 1000)])
        with interpreted():
            sort_by_expert(ids_tk, 128)
        return all(_equals_torch(*CASES[case], adapters) for case, adapters in (("ragged", 0), ("empty experts", 2), ("many blocks", 0)))

    assert is_accepted()
    plant(monkeypatch, tmp_path, sort_triton, *BUGS[bug])
    with suppress(OutOfBoundsError, RaceError):
        assert not is_accepted()
