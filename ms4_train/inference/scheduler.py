"""Which tokens the next step computes, and in which cache blocks they land.

One rule: every sequence has computed tokens and wanted tokens (its prompt, and what was chosen since), and each step brings sequences
closer to what they want within a budget of tokens. A whole prompt, a part of a long one, what a prefix hit left over, a single decoded
token and the way back after a preemption are the same thing here: a piece of a sequence. Sequences start in the order of their priority,
then of their coming; running ones always advance before a new one starts. Where blocks run out, the sequence that started last gives up
its own and begins again later, from what the prefix cache has kept of it. Pure Python.
Exercise it: ``pytest tests/ms4_train/inference/test_scheduler.py``.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from ms4_train.inference.blocks import BlockName, BlockPool
from ms4_train.inference.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one sequence that a step computes: ``length`` of them from position ``start``."""

    sequence: Sequence
    start: int
    length: int

    @property
    def chooses(self) -> bool:
        """Whether the sequence is complete with this piece, so that its next token is chosen."""
        return self.start + self.length == self.sequence.wanted


@dataclass
class Step:
    """What a step does.

    Attributes:
        pieces: in the order in which their sequences started.
        copies: blocks to copy first, (source, target).
        fresh: blocks that were never written before.
    """

    pieces: list[Piece] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)


class Scheduler:
    """Holds the waiting and running sequences.

    Args:
        pool: of the cache's blocks. One sequence of the longest length, and one block more, must fit into it.
        block_size: tokens of a block.
        max_running: most sequences at once.
        token_budget: most tokens per step; at least ``max_running``, so that every running sequence can decode.
    """

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, token_budget: int) -> None:
        assert token_budget >= max_running, "every running sequence must be able to decode in each step"
        self.preemptions = 0
        self._was_short = False
        self._pool = pool
        self._block_size = block_size
        self._max_running = max_running
        self._token_budget = token_budget
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._running: list[Sequence] = []
        self._count = itertools.count()
        self._place_before = itertools.count(-1, -1)  # not ``preemptions``, which its reader sets back

    @property
    def num_waiting(self) -> int:
        """Sequences that have not started, or were preempted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def sequences(self) -> list[Sequence]:
        """All of them."""
        return [*self._running, *(sequence for _, _, sequence in self._waiting)]

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        heapq.heappush(self._waiting, (sequence.request.priority, next(self._count), sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is: it has ended, or is not wanted any more."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)

    def next_step(self) -> Step:
        """The next step; without pieces when nothing is left to do."""
        step = Step()
        self._was_short = False
        lengths = self._share_budget()
        left = self._token_budget - sum(lengths.values())
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            length = lengths[id(sequence)]
            if length and self._make_room(sequence, length, step, keep=index + 1):
                step.pieces.append(Piece(sequence, sequence.computed, length))
            index += 1
        # After a preemption nothing new starts: it would take the room that the preempted one waits for.
        if len(step.pieces) == len(self._running) and not self._was_short:
            self._start(left, step)
        return step

    def finish_step(self, step: Step) -> None:
        """The step's tokens are in the cache now; full blocks get their names."""
        size = self._block_size
        for piece in step.pieces:
            sequence = piece.sequence
            before, sequence.computed = sequence.computed, piece.start + piece.length
            full = sequence.computed // size
            if full > before // size:
                names = sequence.block_names(full, size)
                for index in range(before // size, full):
                    self._pool.name(sequence.blocks[index], names[index])

    def _share_budget(self) -> dict[int, int]:
        """Tokens of each running sequence. Those that want fewest come first: a long prompt must not hold up the others' next tokens."""
        left = self._token_budget
        lengths: dict[int, int] = {}
        for sequence in sorted(self._running, key=lambda running: running.wanted - running.computed):
            lengths[id(sequence)] = min(sequence.wanted - sequence.computed, left)
            left -= lengths[id(sequence)]
        return lengths

    def _make_room(self, sequence: Sequence, length: int, step: Step, *, keep: int) -> bool:
        """Give a running sequence blocks of its own for its next tokens, if need be by preempting those that started after it, but none of
        the first ``keep``. Returns whether it still runs: the last one preempts itself."""
        while self._missing(sequence, length) > self._pool.num_free:
            self._was_short = True
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
            assert len(self._running) >= keep, "a sequence with a piece in this step is never preempted"
        self._own(sequence, length, step)
        return True

    def _missing(self, sequence: Sequence, length: int) -> int:
        """Blocks that the next ``length`` tokens need and that the sequence has not got for itself."""
        size = self._block_size
        first, stop = sequence.computed // size, -(-(sequence.computed + length) // size)
        held = sequence.blocks
        shared = sum(1 for index in range(first, min(stop, len(held))) if self._pool.is_shared(held[index]))
        return shared + max(0, stop - len(held))

    def _own(self, sequence: Sequence, length: int, step: Step) -> None:
        """Take the missing blocks; shared ones that are written to are copied."""
        size = self._block_size
        first, stop = sequence.computed // size, -(-(sequence.computed + length) // size)
        blocks = sequence.blocks
        for index in range(first, min(stop, len(blocks))):
            if self._pool.is_shared(blocks[index]):
                copy = self._pool.take([])
                step.copies.append((blocks[index], copy))
                self._pool.give_back([blocks[index]])
                blocks[index] = copy
        while len(blocks) < stop:
            blocks.append(self._pool.take(step.fresh))

    def _preempt(self, sequence: Sequence) -> None:
        """Stop a running sequence and queue it before all that came after it."""
        self.preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        heapq.heappush(self._waiting, (sequence.request.priority, next(self._place_before), sequence))

    def _release(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0

    def _start(self, left: int, step: Step) -> None:
        """Start waiting sequences within ``left`` tokens."""
        later: list[tuple[int, int, Sequence]] = []
        coming = self._coming_names() if self._waiting else set()
        while self._waiting and len(self._running) < self._max_running and left > 0:
            entry = heapq.heappop(self._waiting)
            sequence = entry[2]
            leader = sequence.leader
            if leader is not None and leader in self._running and leader.computed < len(leader.prompt_ids):
                later.append(entry)  # it will share what its leader is computing
                continue
            self._find_prefix(sequence)
            if coming and self._next_name(sequence) in coming:
                self._release(sequence)
                later.append(entry)  # its next block is being computed by another one, and will be found then
                continue
            length = min(sequence.wanted - sequence.computed, left)
            # One free block for each running sequence: what has started shall not be preempted at once by what starts now.
            if self._missing(sequence, length) + (len(self._running) if self._running else 0) > self._pool.num_free:
                self._release(sequence)
                later.append(entry)
                break
            self._running.append(sequence)
            self._own(sequence, length, step)
            step.pieces.append(Piece(sequence, sequence.computed, length))
            if sequence.cached_tokens < 0:
                sequence.cached_tokens = min(sequence.computed, len(sequence.prompt_ids))
            left -= length
            coming.update(self._names_to_come(sequence))
        for entry in later:
            heapq.heappush(self._waiting, entry)

    def _coming_names(self) -> set[BlockName]:
        """Names of the full blocks of prompts that running sequences are computing."""
        return {name for sequence in self._running for name in self._names_to_come(sequence)}

    def _names_to_come(self, sequence: Sequence) -> list[BlockName]:
        size, prompt = self._block_size, len(sequence.prompt_ids)
        if not self._pool.caches or sequence.computed >= prompt:
            return []
        return sequence.block_names(prompt // size, size)[sequence.computed // size :]

    def _next_name(self, sequence: Sequence) -> BlockName | None:
        """The name of the first block that a sequence would compute, where it may be found instead."""
        size, index = self._block_size, sequence.computed // self._block_size
        if not sequence.reads_cache or (index + 1) * size >= sequence.wanted:
            return None
        return sequence.block_names(index + 1, size)[index]

    def _find_prefix(self, sequence: Sequence) -> None:
        """Let a sequence that starts hold the blocks that exist already of its beginning. At least its last token is computed."""
        size, leader = self._block_size, sequence.leader
        if not sequence.reads_cache:
            return
        prompt = len(sequence.prompt_ids)
        if leader is not None and leader in self._running and not sequence.generated_ids:
            # The leader's blocks, its half-filled last one too: whoever writes to that first gets a copy.
            shared, computed = leader.blocks[: -(-prompt // size)], prompt - 1
        else:
            count = (sequence.wanted - 1) // size
            shared = self._pool.find(sequence.block_names(count, size))
            computed = len(shared) * size
        for block in shared:
            self._pool.share(block)
        sequence.blocks, sequence.computed = list(shared), computed
