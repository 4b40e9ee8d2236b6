"""Which tokens the next step computes.

One rule: every request has computed tokens and wanted tokens (its prompt, and what it has generated), and each step brings requests closer
to what they want within a budget of tokens. A whole prompt, a part of a long prompt and a single decoded token are the same thing here:
a piece of a sequence. Requests start in the order they came; running ones always advance before a new one starts, so none waits for ever.

A running sequence owns a cache slot. Slots are kept gapless: when a sequence ends, the last one moves into its slot at once, so that the
cache can be read as one contiguous block. Pure Python: the one tensor is carried along, never looked into.
Exercise it: ``pytest tests/ms4_train/inference/test_scheduler.py``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from ms4_train.inference.detokenize import StopMatcher
from ms4_train.inference.request import GenerationRequest


@dataclass(eq=False)
class Sequence:
    """One request on its way.

    Attributes:
        request: what was asked for.
        index: its place among the requests of the call.
        matcher: watches for stop texts.
        token_ids: prompt and chosen tokens; all of them are wanted.
        computed: how many of them the cache holds.
        slot: its cache slot, while it runs.
        output_ids: tokens that are certain to belong to the answer.
        features_nd: embeddings of the prompt's image tokens that are not computed yet, from the first piece to the last with images.
        started: clock reading at its first step, in seconds.
    """

    request: GenerationRequest
    index: int
    matcher: StopMatcher
    token_ids: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = -1
    output_ids: list[int] = field(default_factory=list)
    features_nd: Tensor | None = None
    started: float = 0.0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)

    @property
    def wanted(self) -> int:
        """Tokens that must be computed before the next one can be chosen."""
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Tokens chosen so far, which is also the position of the next one in the answer."""
        return len(self.token_ids) - len(self.request.prompt_ids)


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``start + length`` of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def chooses(self) -> bool:
        """Whether the sequence is complete after it, so that its next token can be chosen."""
        return self.start + self.length == self.sequence.wanted


@dataclass(frozen=True)
class Move:
    """A cache slot's contents to be moved: the first ``length`` tokens of slot ``source`` to slot ``target``."""

    source: int
    target: int
    length: int


# A prompt's forward costs about as much as a decode step whether it holds one short prompt or ten, so new ones start together: when this
# share of the slots is free, or after so many steps, whichever comes first.
_REFILL_SHARE = 8
_LONGEST_HOLD = 16


class Scheduler:
    """Waiting and running sequences, and the choice of pieces for the next step.

    Args:
        max_running: most sequences at once, which is the number of cache slots.
        token_budget: most tokens per step; at least ``max_running``, so that every running sequence can decode.
    """

    def __init__(self, *, max_running: int, token_budget: int) -> None:
        assert token_budget >= max_running, "every running sequence must be able to decode in each step"
        self._max_running = max_running
        self._token_budget = token_budget
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._held_steps = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that have not started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that own a slot; the slots in use are 0 to this."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence."""
        self._waiting.append(sequence)

    def next_step(self) -> list[Piece]:
        """The pieces of the next step, in order of slots; empty when nothing is left to do.

        A step takes every running sequence's decode, then the rest of a prompt that was begun, then new prompts. A prompt that fits the
        whole budget but not what is left of it waits for a step with more room instead of being split. In a batch that is nearly full,
        new prompts are held for a few steps until several can start at once.
        """
        left = self._token_budget
        lengths: dict[int, int] = {}
        # Decodes first: a long prompt on its way must not hold up the others' next tokens.
        for sequence in sorted(self._running, key=lambda running: running.wanted - running.computed):
            lengths[sequence.slot] = min(sequence.wanted - sequence.computed, left)
            left -= lengths[sequence.slot]
        if self._may_start():
            self._start(left, lengths)
        return [Piece(running, running.computed, lengths[running.slot]) for running in self._running if lengths[running.slot]]

    def _may_start(self) -> bool:
        """Whether new prompts start in this step."""
        free = self._max_running - len(self._running)
        if not self._waiting or not free:
            self._held_steps = 0
            return False
        self._held_steps += 1
        if free >= self._max_running // _REFILL_SHARE or self._held_steps > _LONGEST_HOLD:
            self._held_steps = 0
            return True
        return False

    def _start(self, left: int, lengths: dict[int, int]) -> None:
        """Starts waiting sequences within ``left`` tokens and enters their first pieces in ``lengths`` (tokens by slot)."""
        if any(lengths[running.slot] < running.wanted - running.computed for running in self._running):
            return  # a long prompt is on its way and took what was left
        num_prompts = sum(1 for running in self._running if running.num_generated == 0)
        while self._waiting and len(self._running) < self._max_running and left > 0:
            length = min(self._waiting[0].wanted, left)
            is_split = length < self._waiting[0].wanted
            if is_split and num_prompts:
                return
            sequence = self._waiting.popleft()
            sequence.slot = len(self._running)
            self._running.append(sequence)
            lengths[sequence.slot] = length
            left -= length
            num_prompts += 1
            if is_split:
                return

    def finish(self, sequence: Sequence) -> Move | None:
        """Takes a sequence out and frees its slot; returns what must be moved in the cache to close the gap."""
        last = self._running.pop()
        if last is sequence:
            return None
        move = Move(source=last.slot, target=sequence.slot, length=last.computed)
        self._running[sequence.slot] = last
        last.slot = sequence.slot
        return move
