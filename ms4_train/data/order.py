"""Where the loader's documents come from: sources in memory, epoch by epoch, or streams that are read during the run.

Both kinds tell a JSON-able position that counts source rows, and go on from it exactly. Exercise it:
``pytest tests/ms4_train/data/test_order.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ms4_train.chat import ChatTokenizer
from ms4_train.data.image_reference import image_reference, restore_image
from ms4_train.data.image_worker import image_digest
from ms4_train.data.mixture import epoch_order, next_stream, rows_drawn, shuffled
from ms4_train.data.pipeline import Outcome, RowPipeline, to_document
from ms4_train.data.preparation import PreparedData
from ms4_train.data.rows import OVERLONG, Document, RawRow
from ms4_train.data.sources import iter_rows
from ms4_train.data.split import is_held_out
from ms4_train.errors import DataError

BLOCK_ROWS = 1024
"""A stream is shuffled inside blocks of this many rows, so that its position needs no buffer."""


class RowOrder(Protocol):
    """An endless sequence of documents, cut into epochs where the sources have an end."""

    source_rows_per_epoch: int | None
    """Rows drawn per epoch; None for streams."""

    @property
    def epoch(self) -> float:
        """Epochs drawn so far; 0 for streams."""
        ...

    def draw(self) -> Document | None:
        """The next document; None at the end of an epoch, after which the next one follows."""
        ...

    def row_counts(self) -> dict[str, int]:
        """Source rows read, kept and skipped: all of them where they are in memory, those so far of streams."""
        ...

    def reference(self, document: Document) -> list[Any]:
        """JSON-able; enough to restore a document that was drawn."""
        ...

    def restore(self, reference: list[Any]) -> Document:
        """The document that ``reference`` described.

        Raises:
            ValueError, TypeError, IndexError: ``reference`` is malformed.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        ...


class MemoryOrder:
    """Documents of prepared sources in the order of ``ms4_train.data.mixture``."""

    def __init__(self, prepared: PreparedData, seed: int) -> None:
        self._stores = prepared.train
        self._sizes = [len(store) for store in self._stores]
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._weights = [source.weight for source in prepared.section.train]
        self._seed = seed
        self._shuffle = prepared.section.shuffle
        self.source_rows_per_epoch: int | None = sum(rows_drawn(self._sizes, self._weights))
        self._survey = prepared.survey
        self._epoch = 0
        self._cursor = 0
        self._order: NDArray[np.int64] = self.epoch_ids(0)

    def epoch_ids(self, epoch: int) -> NDArray[np.int64]:
        """Global ids of the rows that ``epoch`` draws."""
        return epoch_order(self._sizes, self._weights, seed=self._seed, epoch=epoch, shuffle=self._shuffle)

    def lengths(self, ids: NDArray[np.int64]) -> list[int]:
        """Tokens of the documents with these global ids."""
        return [self._stores[source].length(index) for source, index in map(self._locate, ids.tolist())]

    @property
    def epoch(self) -> float:
        """Epochs drawn so far."""
        return self._epoch + self._cursor / max(1, len(self._order))

    def draw(self) -> Document | None:
        """The next document, or None where an epoch ends."""
        if self._cursor == len(self._order):
            self._epoch += 1
            self._cursor = 0
            self._order = self.epoch_ids(self._epoch)
            return None
        source, index = self._locate(int(self._order[self._cursor]))
        self._cursor += 1
        return self._stores[source].document(index, source=source)

    def row_counts(self) -> dict[str, int]:
        """Source rows read, kept (to train on) and skipped."""
        survey = self._survey
        return {"rows_read": survey.rows_read, "rows_kept": survey.rows_kept, "rows_skipped": survey.rows_skipped}

    def reference(self, document: Document) -> list[Any]:
        """Source and index."""
        assert document.place is not None
        return list(document.place)

    def restore(self, reference: list[Any]) -> Document:
        """The document at ``[source, index]``."""
        source, index = reference
        return self._stores[source].document(index, source=source)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and source rows drawn in it."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._epoch, self._cursor = int(state["epoch"]), int(state["cursor"])
        self._order = self.epoch_ids(self._epoch)

    def _locate(self, global_id: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._firsts, global_id, side="right")) - 1
        return source, global_id - int(self._firsts[source])


class _Stream:
    """One source read block by block; a block's kept rows are shuffled."""

    def __init__(self, pipeline: RowPipeline, prepared: PreparedData, salt: tuple[int, int]) -> None:
        self._pipeline = pipeline
        self._section = prepared.section
        self._fraction = 0.0 if prepared.section.validation else prepared.section.validation_fraction
        self._limits = prepared.workers.limits
        self._salt = salt
        self.rows_read = 0
        self.rows_skipped = 0
        self.rows_held_out = 0
        self._pass = 0
        self._block_start = 0
        """Source rows of this pass before the block."""
        self._taken = 0
        """Documents of the block that were handed out."""
        self._block: list[Document] = []
        self._block_rows = 0
        self._block_skipped = 0
        self._block_held_out = 0
        self._kept_in_pass = 0
        self._iterator: Iterator[RawRow] | None = None

    def draw(self) -> Document:
        while self._taken == len(self._block):
            self._finish_block()
            self._read_block()
        document = self._block[self._taken]
        self._taken += 1
        return document

    def _finish_block(self) -> None:
        """Move the position behind the current block."""
        self.rows_read += self._block_rows
        self.rows_skipped += self._block_skipped
        self.rows_held_out += self._block_held_out
        self._block_start += self._block_rows
        self._taken = 0
        ended = self._iterator is not None and self._block_rows < BLOCK_ROWS
        if ended:
            if not self._kept_in_pass:
                raise DataError(
                    "no row of the stream can be trained on.", file=self._pipeline.source.path, fix="run `ms4 data check` on it."
                )
            self._pass, self._block_start, self._kept_in_pass, self._iterator = self._pass + 1, 0, 0, None

    def _read_block(self) -> None:
        if self._iterator is None:
            self._iterator = iter_rows(self._pipeline.source, start=self._block_start)
        kept: list[Document] = []
        self._block_rows = self._block_skipped = self._block_held_out = 0
        for raw in self._iterator:
            self._block_rows += 1
            document = self._process(raw)
            if document is not None:
                kept.append(document)
            if self._block_rows == BLOCK_ROWS:
                break
        self._kept_in_pass += len(kept)
        order = np.arange(len(kept), dtype=np.int64)
        if self._section.shuffle:
            order = shuffled(order, *self._salt, self._pass, self._block_start)
        self._block = [kept[index] for index in order]

    def _process(self, raw: RawRow) -> Document | None:
        outcome = self._pipeline.process(raw)
        if outcome.fault is not None:
            policy = self._section.overlong_rows if outcome.fault.code == OVERLONG else self._section.invalid_rows
            if policy == "error":
                raise outcome.fault.to_error()
            self._block_skipped += 1
            return None
        assert outcome.row is not None
        assert outcome.encoded is not None
        if is_held_out(outcome.row, self._fraction, self._digests(outcome)):
            self._block_held_out += 1
            return None
        return to_document(raw, outcome.encoded)

    def _digests(self, outcome: Outcome) -> list[str]:
        """Identities of the images, which only the split needs: a stream's images are decoded when their batch comes."""
        return [image_digest(image, self._limits)[0] for image in outcome.images] if self._fraction else []

    def state_dict(self) -> dict[str, int]:
        return {
            "pass": self._pass,
            "block_start": self._block_start,
            "taken": self._taken,
            "kept_before_block": self._kept_in_pass - len(self._block),
            "rows_read": self.rows_read,
            "rows_skipped": self.rows_skipped,
            "rows_held_out": self.rows_held_out,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._pass, self._block_start = int(state["pass"]), int(state["block_start"])
        self._kept_in_pass = int(state["kept_before_block"])
        self.rows_read, self.rows_skipped = int(state["rows_read"]), int(state["rows_skipped"])
        self.rows_held_out = int(state["rows_held_out"])
        self._iterator, self._block = None, []
        self._block_rows = self._block_skipped = self._block_held_out = 0
        self._taken = int(state["taken"])
        if self._taken:
            self._read_block()


class StreamOrder:
    """Documents of streams, drawn at rates proportional to the weights."""

    source_rows_per_epoch: int | None = None

    def __init__(self, prepared: PreparedData, tokenizer: ChatTokenizer, seed: int) -> None:
        section = prepared.section
        self._weights = [source.weight for source in section.train]
        self._streams = [
            _Stream(RowPipeline(source, section, tokenizer), prepared, (seed, number)) for number, source in enumerate(section.train)
        ]
        self._drawn: list[int] = [0] * len(self._streams)

    @property
    def epoch(self) -> float:
        """0: a stream has no known end."""
        return 0.0

    def draw(self) -> Document | None:
        """The next document."""
        number = next_stream(self._drawn, self._weights)
        document = self._streams[number].draw()
        self._drawn[number] += 1
        return document

    def row_counts(self) -> dict[str, int]:
        """Source rows read, kept and skipped in the blocks behind the current position."""
        read = sum(stream.rows_read for stream in self._streams)
        skipped = sum(stream.rows_skipped for stream in self._streams)
        held_out = sum(stream.rows_held_out for stream in self._streams)
        return {"rows_read": read, "rows_kept": read - skipped - held_out, "rows_skipped": skipped}

    def reference(self, document: Document) -> list[Any]:
        """The whole document: a stream cannot jump back to a row. Its images are added where it has some."""
        text = [document.row_id, document.token_ids_t.tolist(), np.flatnonzero(document.loss_mask_t).tolist()]
        return [*text, [image_reference(image) for image in document.images]] if document.images else text

    def restore(self, reference: list[Any]) -> Document:
        """The document that was written out in full."""
        row_id, token_ids, trained, *rest = reference
        images = tuple(map(restore_image, rest[0])) if rest else ()
        loss_mask_t = np.zeros(len(token_ids), dtype=np.bool_)
        loss_mask_t[trained] = True
        return Document(row_id, np.array(token_ids, dtype=np.int32), loss_mask_t, images=images)

    def state_dict(self) -> dict[str, Any]:
        """Rows drawn, and every stream's position."""
        return {"drawn": list(self._drawn), "streams": [stream.state_dict() for stream in self._streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._drawn = [int(count) for count in state["drawn"]]
        streams: Sequence[dict[str, int]] = state["streams"]
        for stream, saved in zip(self._streams, streams, strict=True):
            stream.load_state_dict(saved)


def make_order(prepared: PreparedData, tokenizer: ChatTokenizer, seed: int) -> RowOrder:
    """The order that fits the sources."""
    return StreamOrder(prepared, tokenizer, seed) if prepared.is_streaming else MemoryOrder(prepared, seed)
