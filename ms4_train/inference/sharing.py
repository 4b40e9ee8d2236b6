"""Which rank answers which request, for ranks that generate together.

A request waits in one queue until a rank has room for it; then the rank with the fewest unfinished tokens takes it, with all its n answers.
A rank that has had the same prompt before comes first where it has hardly more to do: its cache may hold what was computed of it.
Where a request lives does not change its answers. Pure Python. Exercise it: ``pytest tests/ms4_train/inference/test_sharing.py``.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from ms4_train.inference.request import GenerationRequest

_QUEUED = 2
"""Answers beyond its batch that a rank may hold, so that a place that falls free is taken in the next step."""
_REMEMBERED = 4096
"""Prompts whose ranks are remembered."""


@dataclass
class Share:
    """A request in hand.

    Attributes:
        rank: that answers it; None while it waits.
        unfinished: tokens that are still to be computed, at most, of each answer that has not ended; the first answer's with the prompt.
    """

    request: GenerationRequest
    rank: int | None
    unfinished: dict[int, int]

    @property
    def left(self) -> int:
        """Tokens that are still to be computed, at most."""
        return sum(self.unfinished.values())


@dataclass
class Sharing:
    """The requests in hand.

    Args:
        ranks: how many share them.
        places: most answers that a rank computes at once.
    """

    ranks: int
    places: int
    shares: dict[str, Share] = field(default_factory=dict)
    _waiting: list[tuple[int, int, str]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)
    _seen: OrderedDict[int, set[int]] = field(default_factory=OrderedDict)

    def add(self, request: GenerationRequest) -> None:
        """Queue a request."""
        unfinished = dict.fromkeys(range(request.n), request.sampling.max_tokens)
        unfinished[0] += len(request.prompt_ids)
        self.shares[request.request_id] = Share(request, None, unfinished)
        heapq.heappush(self._waiting, (request.priority, next(self._count), request.request_id))

    @property
    def waiting(self) -> int:
        """Answers that no rank has got yet."""
        return sum(len(share.unfinished) for share in self.shares.values() if share.rank is None)

    def loads(self) -> list[int]:
        """Unfinished tokens of each rank."""
        loads = [0] * self.ranks
        for share in self.shares.values():
            if share.rank is not None:
                loads[share.rank] += share.left
        return loads

    def hand_out(self) -> dict[int, list[GenerationRequest]]:
        """Give waiting requests to ranks that have room, by priority and then in the order they came."""
        given: dict[int, list[GenerationRequest]] = {}
        if not self._waiting:
            return given
        loads, answers = self.loads(), [0] * self.ranks
        for share in self.shares.values():
            if share.rank is not None:
                answers[share.rank] += len(share.unfinished)
        while self._waiting:
            share = self.shares.get(self._waiting[0][2])
            if share is None or share.rank is not None:
                heapq.heappop(self._waiting)  # it was cancelled, and another one may have come under its name
                continue
            size = share.request.n
            free = [rank for rank in range(self.ranks) if not answers[rank] or answers[rank] + size <= self.places + _QUEUED]
            if not free:
                break
            heapq.heappop(self._waiting)
            rank = self._choose(share, free, loads)
            share.rank = rank
            loads[rank] += share.left
            answers[rank] += size
            given.setdefault(rank, []).append(share.request)
        return given

    def advance(self, request_id: str, index: int, tokens: int) -> None:
        """Tokens of an answer have come."""
        share = self.shares.get(request_id)
        if share is not None and index in share.unfinished:
            share.unfinished[index] = max(0, share.unfinished[index] - tokens)

    def finish(self, request_id: str, index: int) -> None:
        """An answer has ended."""
        share = self.shares.get(request_id)
        if share is None:
            return
        share.unfinished.pop(index, None)
        if not share.unfinished:
            del self.shares[request_id]

    def clear(self) -> None:
        """Forget all, and what the ranks' caches held."""
        self.shares.clear()
        self._waiting.clear()
        self._seen.clear()

    def _choose(self, share: Share, free: list[int], loads: list[int]) -> int:
        request = share.request
        name = hash((request.adapter, request.prompt_ids))
        least = min(free, key=lambda rank: (loads[rank], rank))
        seen = self._seen.setdefault(name, set())
        self._seen.move_to_end(name)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        known = min((rank for rank in free if rank in seen), key=lambda rank: (loads[rank], rank), default=least)
        rank = known if loads[known] - loads[least] <= share.left else least
        seen.add(rank)
        return rank
