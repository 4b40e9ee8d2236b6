"""The training loader: an endless sequence of batches whose position resumes exactly.

All ranks walk through one global sequence of packed rows; row i belongs to rank i modulo the number of ranks. So the sequence does not
depend on how many ranks there are, and a run saved on two ranks goes on with one. The position counts source rows, and holds what the
packer carries over; counting batches instead repeats or drops rows on resume.

Rows are encoded before the run (or, for streams, block by block). What is left is the images: workers decode those of the next batches
while the model computes. Batches that were only planned do not count: the position is always that behind the last one handed out.

Exercise it: ``pytest tests/ms4_train/data/test_loader.py``; with images ``test_loader_images.py`` beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_train.chat import ChatTokenizer
from ms4_train.config.schema import DataSection
from ms4_train.data.batch import PackedBatch, filler_batch, make_batch
from ms4_train.data.image_batches import LOOK_AHEAD, ImageBatches, PendingBatch
from ms4_train.data.image_workers import ImageWorkers
from ms4_train.data.order import MemoryOrder, RowOrder, make_order
from ms4_train.data.packing import Packer
from ms4_train.data.preparation import PreparedData, prepare
from ms4_train.data.rows import Document
from ms4_train.errors import DataError, MS4Error

_STATE_VERSION = 1
_COUNTERS = ("packed_rows", "documents", "tokens", "trained_tokens")


@dataclass(frozen=True, slots=True)
class _Position:
    """Where the loader stands behind a batch. It holds documents as they are, because few positions are ever written."""

    order: dict[str, Any]
    epoch: float
    row_counts: dict[str, int]
    carry_over: list[list[Document]]
    ready: list[list[Document]]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A batch that was not handed out yet, or the error that comes in its place."""

    batch: PendingBatch | MS4Error
    behind: _Position


class TrainLoader:
    """Batches for one rank, for ever; make one with ``build_loader``, and ``close`` it at the end.

    ``state_dict`` is the position behind the last batch that was handed out.
    """

    def __init__(
        self,
        order: RowOrder,
        section: DataSection,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        fingerprint: str,
        workers: ImageWorkers,
        filler: PackedBatch,
        skip_bad_images: bool,
    ) -> None:
        assert 0 <= rank < world_size
        self._order = order
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._fingerprint = fingerprint
        self._max_length = section.max_length
        self._packer: Packer[Document] | None = Packer(section.max_length) if section.packing else None
        self._ready: deque[list[Document]] = deque()
        self._counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._rows_per_epoch: int | None = None
        self._workers = workers
        self._filler = filler
        self._skip_bad_images = skip_bad_images
        self._ahead: deque[_Planned] = deque()
        self._look_ahead = 0
        self._position = self._here()

    def __iter__(self) -> Iterator[PackedBatch]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> PackedBatch:
        """The next batch of this rank.

        Raises:
            RowError: a streaming source holds a bad row that may not be skipped, or an image cannot be decoded (any more).
        """
        while len(self._ahead) <= self._look_ahead and not (self._ahead and isinstance(self._ahead[-1].batch, MS4Error)):
            self._ahead.append(self._plan())
        planned = self._ahead.popleft()
        if isinstance(planned.batch, MS4Error):
            raise planned.batch
        batch = planned.batch.result(skip_bad=self._skip_bad_images)
        self._position = planned.behind
        return batch

    def close(self) -> None:
        """Forget what was planned and end the workers."""
        self._forget_ahead()
        self._workers.close()

    def _plan(self) -> _Planned:
        """Draw the next batch and send its images to the workers."""
        mine: list[Document] = []
        try:
            for offset in range(self._batch_size * self._world_size):
                row = self._next_row()
                if offset % self._world_size == self._rank:
                    mine += row
        except MS4Error as error:
            return _Planned(error, self._here())
        if any(document.images for document in mine):
            self._look_ahead = LOOK_AHEAD
        return _Planned(PendingBatch(mine, self._workers, self._filler), self._here())

    def _forget_ahead(self) -> None:
        for planned in self._ahead:
            if isinstance(planned.batch, PendingBatch):
                planned.batch.cancel()
        self._ahead.clear()

    def _here(self) -> _Position:
        """The position of the order and the packer, ahead of the batches that are planned."""
        return _Position(
            order=self._order.state_dict(),
            epoch=self._order.epoch,
            row_counts=self._order.row_counts(),
            carry_over=[list(row) for row in self._packer.open_rows] if self._packer else [],
            ready=list(self._ready),
            counters=dict(self._counters),
        )

    def _next_row(self) -> list[Document]:
        """The next packed row of the global sequence."""
        while not self._ready:
            document = self._order.draw()
            if self._packer is None:
                if document is not None:
                    self._ready.append([document])
            elif document is None:
                # Rows end with the epoch, so that every epoch shows every row once before any row comes again.
                self._ready.extend(self._packer.flush())
            else:
                self._ready.extend(self._packer.push(document))
        row = self._ready.popleft()
        counted = (1, len(row), sum(len(document) for document in row), sum(document.num_trained for document in row))
        for name, count in zip(_COUNTERS, counted, strict=True):
            self._counters[name] += count
        return row

    @property
    def epoch(self) -> float:
        """Epochs drawn so far (the packer may still hold a few of the rows); 0 for streams."""
        return self._position.epoch

    @property
    def source_rows_per_epoch(self) -> int | None:
        """Rows that an epoch draws from the sources; None for streams."""
        return self._order.source_rows_per_epoch

    @property
    def rows_per_epoch(self) -> int | None:
        """Packed rows of the first epoch, over all ranks; later epochs differ by a few rows. None for streams."""
        if self._rows_per_epoch is None and isinstance(self._order, MemoryOrder):
            ids = self._order.epoch_ids(0)
            if self._packer is None:
                self._rows_per_epoch = len(ids)
            else:
                packer: Packer[range] = Packer(self._max_length)
                # ``range(n)`` is an item of length n that takes no memory.
                full = sum(len(packer.push(range(length))) for length in self._order.lengths(ids))
                self._rows_per_epoch = full + len(packer.flush())
        return self._rows_per_epoch

    def counts(self) -> dict[str, int]:
        """What was handed out so far, over all ranks, and what was read and skipped."""
        return {**self._position.row_counts, **self._position.counters}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position, the same on every rank."""
        reference, position = self._order.reference, self._position
        return {
            "version": _STATE_VERSION,
            "fingerprint": self._fingerprint,
            "seed": self._seed,
            "order": position.order,
            "carry_over": [[reference(document) for document in row] for row in position.carry_over],
            "ready": [[reference(document) for document in row] for row in position.ready],
            **position.counters,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position, with any number of ranks.

        Raises:
            DataError: the position belongs to other rows, another order or another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise DataError(f"the data position has version {state.get('version')!r}, not {_STATE_VERSION}.", fix="start the run anew.")
        for key, mine in (("fingerprint", self._fingerprint), ("seed", self._seed)):
            if state.get(key) != mine:
                raise DataError(
                    "the saved position belongs to other data: rows, their order or the seed have changed since.",
                    key=f"data ({key})",
                    fix="restore the data and the data section, or set training.resume_from_checkpoint: never.",
                )
        try:
            self._restore(state)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"the saved data position is damaged ({type(error).__name__}).", fix="resume from an earlier checkpoint."
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        self._forget_ahead()
        restore = self._order.restore
        self._order.load_state_dict(state["order"])
        if self._packer is not None:
            self._packer.restore([[restore(reference) for reference in row] for row in state["carry_over"]])
        self._ready = deque([restore(reference) for reference in row] for row in state["ready"])
        self._counters = {name: int(state[name]) for name in _COUNTERS}
        self._position = self._here()


def build_loader(
    section: DataSection,
    tokenizer: ChatTokenizer,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    prepared: PreparedData | None = None,
) -> TrainLoader:
    """The loader of one rank.

    Args:
        section: sources, lengths and policies.
        tokenizer: encodes the rows.
        batch_size: packed rows per batch and rank.
        seed: decides the order.
        rank: this process.
        world_size: all processes that train on different rows.
        prepared: the rows, where ``prepare`` has read them already.

    Raises:
        DataError: rows are bad and may not be skipped, or nothing is left to train on.
    """
    prepared = prepared or prepare(section, tokenizer)
    prepared.require_usable()
    return TrainLoader(
        make_order(prepared, tokenizer, seed),
        section,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        fingerprint=prepared.fingerprint(),
        workers=prepared.workers,
        filler=filler_batch(tokenizer.bos_id, tokenizer.eos_id),
        # Images in memory were decoded before the run: one that fails now has changed, which is never skipped.
        skip_bad_images=prepared.is_streaming and section.invalid_rows == "skip",
    )


def build_eval_batches(
    section: DataSection,
    tokenizer: ChatTokenizer,
    *,
    batch_size: int,
    max_rows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    prepared: PreparedData | None = None,
) -> Sequence[PackedBatch]:
    """The validation batches of one rank: always the same rows in the same order.

    Every rank gets the same number of batches (some without loss), because evaluation may hold collective operations.

    Args:
        section: sources, lengths and policies.
        tokenizer: encodes the rows.
        batch_size: packed rows per batch and rank.
        max_rows: at most so many documents.
        rank: this process.
        world_size: all processes.
        prepared: the rows, where ``prepare`` has read them already.

    Returns:
        Empty where there are no validation rows. Where rows have images, these are decoded anew each time the batches are gone through.
    """
    prepared = prepared or prepare(section, tokenizer)
    documents = [store.document(index) for store in prepared.validation for index in range(len(store))][:max_rows]
    rows: list[list[Document]] = []
    if section.packing:
        packer: Packer[Document] = Packer(section.max_length)
        for document in documents:
            rows += packer.push(document)
        rows += packer.flush()
    else:
        rows = [[document] for document in documents]
    per_step = batch_size * world_size
    steps = [rows[start : start + per_step] for start in range(0, len(rows), per_step)]
    mine = [[document for row in step[rank::world_size] for document in row] for step in steps]
    filler = filler_batch(tokenizer.bos_id, tokenizer.eos_id)
    if any(document.images for batch in mine for document in batch):
        return ImageBatches(mine, prepared.workers, filler)
    return [make_batch(batch) if batch else filler for batch in mine]
