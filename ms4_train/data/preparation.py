"""Reads, checks and encodes all rows of a run once, before its first step.

Rows of sources that do not stream are kept in memory as five bytes per token, so a bad row or an empty loss mask is found before
training and never in the middle of it. Their images are decoded once for the same reason, and kept as they are stored: as paths, or as
encoded bytes where the rows hold them. Of a streaming source the first rows are looked at.

Legend of shape suffixes: t = tokens of all documents of a source, one behind the other; n = documents.
Exercise it: ``pytest tests/ms4_train/data/test_preparation.py``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ms4_train.chat import ChatTokenizer
from ms4_train.config.schema import DataSection, DatasetSource, FieldMap
from ms4_train.data.image_check import with_images_checked
from ms4_train.data.image_workers import ImageWorkers, make_workers
from ms4_train.data.pipeline import Outcome, RowPipeline, to_document
from ms4_train.data.row_survey import SourceCounts, Survey
from ms4_train.data.rows import Document, RawRow
from ms4_train.data.sources import iter_rows
from ms4_train.data.split import is_held_out

STREAM_SAMPLE_ROWS = 1000
"""Rows of a streaming source that are looked at before a run."""

PROGRESS_EVERY = 1000
PROGRESS_EVERY_IMAGE_ROWS = 50

Progress = Callable[[str, int], None]
"""Called with a source's path and the rows read of it so far."""


class DocumentStore:
    """Encoded documents of one source in flat arrays."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._row_ids = [document.row_id for document in documents]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        self._start_n: NDArray[np.int64] = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._images = {index: (document.images, document.image_digests) for index, document in enumerate(documents) if document.images}
        empty_t = np.zeros(0, dtype=np.int32)
        self._token_ids_t: NDArray[np.int32] = np.concatenate([empty_t, *(document.token_ids_t for document in documents)])
        self._loss_mask_t = np.concatenate([empty_t.astype(np.bool_), *(document.loss_mask_t for document in documents)])

    def __len__(self) -> int:
        return len(self._row_ids)

    def document(self, index: int, *, source: int = 0) -> Document:
        """The ``index``-th document of the ``source``-th store."""
        start, stop = int(self._start_n[index]), int(self._start_n[index + 1])
        images, digests = self._images.get(index, ((), ()))
        tokens_t, mask_t = self._token_ids_t[start:stop], self._loss_mask_t[start:stop]
        return Document(self._row_ids[index], tokens_t, mask_t, (source, index), images, digests)

    @property
    def has_images(self) -> bool:
        """Whether any document has."""
        return bool(self._images)

    def length(self, index: int) -> int:
        """Tokens of the ``index``-th document."""
        return int(self._start_n[index + 1] - self._start_n[index])

    def update_digest(self, digest: hashlib.blake2b) -> None:
        """Add all tokens, masks, boundaries and the encoded bytes of all images to a fingerprint."""
        for array in (self._start_n, self._token_ids_t, self._loss_mask_t):
            digest.update(np.ascontiguousarray(array).tobytes())
        for index, (images, digests) in self._images.items():
            assert len(images) == len(digests), "images that nobody has read"
            digest.update(f"{index}:{','.join(digests)};".encode())


@dataclass
class PreparedData:
    """A run's rows, and what they come to."""

    section: DataSection
    survey: Survey
    train: list[DocumentStore]
    """One per training source; empty stores where ``is_streaming``."""
    validation: list[DocumentStore]
    is_streaming: bool
    """Whether training rows are read during the run."""
    workers: ImageWorkers
    """Decode the images; none of them lives where none is at work or awaited."""

    @property
    def has_images(self) -> bool:
        """Whether a row has: to train on, to validate with, or among those of a stream that were looked at."""
        return self.survey.images > 0 or any(store.has_images for store in [*self.train, *self.validation])

    def fingerprint(self) -> str:
        """Identity of the training rows and of everything that decides their order, for resuming."""
        section = self.section
        settings: list[object] = [section.max_length, section.packing, section.shuffle, [source.weight for source in section.train]]
        if self.is_streaming:
            # Rows of a stream cannot be hashed beforehand; those in memory can, wherever their file lies now.
            settings += [source.model_dump_json(exclude=_without_default_images(source)) for source in section.train]
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        for store in self.train:
            store.update_digest(digest)
        return digest.hexdigest()

    def require_usable(self) -> None:
        """Refuse bad rows that may not be skipped, and data without anything to train.

        Raises:
            DataError: with the first faults by file, line and code.
        """
        self.survey.require_valid(invalid_rows=self.section.invalid_rows, overlong_rows=self.section.overlong_rows)
        self.survey.require_trainable()


def _without_default_images(source: DatasetSource) -> dict[str, set[str]] | None:
    """Leaves out the name of the images column where it is the default, so that streams from before it go on."""
    return {"fields": {"images"}} if source.fields.images == FieldMap().images else None


def prepare(section: DataSection, tokenizer: ChatTokenizer, *, progress: Progress | None = None) -> PreparedData:
    """Read every training and validation source.

    Bad rows are recorded in the survey, not raised; ``PreparedData.require_usable`` decides about them.

    Raises:
        DataError: a source cannot be read.
        UntrustedInputError: a local file cannot be read.
    """
    survey = Survey()
    is_streaming = any(source.streaming for source in section.train)
    fraction = 0.0 if section.validation else section.validation_fraction
    train: list[DocumentStore] = []
    validation: list[DocumentStore] = []
    workers = make_workers(section.images, tokenizer)
    try:
        for source in section.train:
            counts = SourceCounts(source.path, source.weight, is_sample=is_streaming)
            survey.sources.append(counts)
            rows = _rows(RowPipeline(source, section, tokenizer), counts, workers, STREAM_SAMPLE_ROWS if is_streaming else None, progress)
            kept, held_out = _sorted_rows(rows, counts, survey, fraction)
            train.append(DocumentStore([] if is_streaming else kept))
            validation.append(DocumentStore(held_out))
        for source in section.validation:
            counts = SourceCounts(source.path, source.weight, is_sample=source.streaming)
            survey.validation.append(counts)
            limit = STREAM_SAMPLE_ROWS if source.streaming else None
            rows = _rows(RowPipeline(source, section, tokenizer), counts, workers, limit, progress)
            validation.append(DocumentStore(_sorted_rows(rows, counts, survey, 0.0)[0]))
    finally:
        # The model is read next, which needs the memory.
        workers.close()
    return PreparedData(section, survey, train, [store for store in validation if len(store)], is_streaming, workers)


def _rows(
    pipeline: RowPipeline, counts: SourceCounts, workers: ImageWorkers | None, limit: int | None, progress: Progress | None
) -> Iterator[tuple[RawRow, Outcome]]:
    """The rows of a source and what became of them, images included; counts those read."""
    outcomes = ((raw, pipeline.process(raw)) for raw in itertools.islice(iter_rows(pipeline.source), limit))
    image_rows = 0
    for raw, outcome in with_images_checked(outcomes, workers):
        counts.rows_read += 1
        image_rows += bool(outcome.images)
        is_due = counts.rows_read % PROGRESS_EVERY == 0 or (outcome.images and image_rows % PROGRESS_EVERY_IMAGE_ROWS == 0)
        if progress is not None and is_due:
            progress(counts.path, counts.rows_read)
        yield raw, outcome


def _sorted_rows(
    rows: Iterator[tuple[RawRow, Outcome]], counts: SourceCounts, survey: Survey, fraction: float
) -> tuple[list[Document], list[Document]]:
    """Returns the documents to train on and those held out."""
    kept: list[Document] = []
    held_out: list[Document] = []
    for raw, outcome in rows:
        if not _is_good(outcome, counts, survey):
            continue
        assert outcome.row is not None
        assert outcome.encoded is not None
        document = to_document(raw, outcome.encoded, outcome.image_digests)
        if is_held_out(outcome.row, fraction, outcome.image_digests):
            counts.rows_held_out += 1
            held_out.append(document)
            continue
        counts.add_kept(outcome)
        kept.append(document)
    return kept, held_out


def _is_good(outcome: Outcome, counts: SourceCounts, survey: Survey) -> bool:
    """Whether a row can be used; counts what it says, or its fault."""
    if outcome.encoded is not None:
        counts.longest = max(counts.longest, len(outcome.encoded.token_ids))
    if outcome.fault is not None:
        survey.add_fault(counts, outcome.fault)
        return False
    if outcome.row is not None:
        counts.add_row(outcome.row)
    return True


def survey(section: DataSection, tokenizer: ChatTokenizer, *, progress: Progress | None = None) -> Survey:
    """What the rows of a run come to (see ``prepare``).

    Raises:
        DataError: a source cannot be read.
        UntrustedInputError: a local file cannot be read.
    """
    return prepare(section, tokenizer, progress=progress).survey


def check_rows(source: DatasetSource, section: DataSection, tokenizer: ChatTokenizer | None, *, progress: Progress | None = None) -> Survey:
    """Check one source's rows, without keeping them; without a tokenizer, their form and the headers of their images only.

    Raises:
        DataError: the source cannot be read.
        UntrustedInputError: a local file cannot be read.
    """
    result = Survey()
    counts = SourceCounts(source.path, source.weight)
    result.sources.append(counts)
    workers = None if tokenizer is None else make_workers(section.images, tokenizer)
    try:
        for _, outcome in _rows(RowPipeline(source, section, tokenizer), counts, workers, None, progress):
            if _is_good(outcome, counts, result):
                counts.add_kept(outcome)
    finally:
        if workers is not None:
            workers.close()
    return result
