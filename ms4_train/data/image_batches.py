"""From packed documents to batches with pixels: images are decoded by workers from the moment a batch is planned.

Exercise it: ``pytest tests/ms4_train/data/test_image_batches.py``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import overload

from ms4_train.data.batch import PackedBatch, make_batch
from ms4_train.data.image_check import image_name
from ms4_train.data.image_workers import DecodedImage, ImageWorkers
from ms4_train.data.rows import Document
from ms4_train.errors import RowError
from ms4_train.model.images import ImageBatch

_LOG = logging.getLogger(__name__)

LOOK_AHEAD = 2
"""Batches whose images are decoded ahead. Pixels take 9.4 KB per token, so a batch of 8,192 tokens takes at most 77 MB."""

CHANGED_IMAGE = "changed-image"
"""Fault code of an image whose bytes are no longer those that were checked before the run."""


class PendingBatch:
    """A batch whose images are under way.

    Args:
        documents: may be empty.
        workers: decode.
        filler: the batch of a rank that has no document.
    """

    def __init__(self, documents: Sequence[Document], workers: ImageWorkers, filler: PackedBatch) -> None:
        self._documents = list(documents)
        self._filler = filler
        self._futures: list[list[Future[DecodedImage]]] = []
        for document in self._documents:
            self._futures.append([workers.load(image) for image in document.images])

    def cancel(self) -> None:
        """Give up the images that no worker has begun with."""
        for futures in self._futures:
            for future in futures:
                future.cancel()

    def result(self, *, skip_bad: bool = False) -> PackedBatch:
        """Wait for the images.

        Args:
            skip_bad: leave a document out, with a warning, where one of its images cannot be had.

        Raises:
            DataError: names the row whose image cannot be decoded any more, or has changed since it was checked.
        """
        kept: list[Document] = []
        pixels: list[ImageBatch] = []
        for document, futures in zip(self._documents, self._futures, strict=True):
            try:
                pixels += _pixels(document, futures)
            except RowError as error:
                if not skip_bad:
                    self.cancel()
                    raise
                _LOG.warning("left out: %s", error)
                continue
            kept.append(document)
        return make_batch(kept, ImageBatch.join(pixels)) if kept else self._filler


def _pixels(document: Document, futures: Sequence[Future[DecodedImage]]) -> list[ImageBatch]:
    pixels: list[ImageBatch] = []
    for index, (image, future) in enumerate(zip(document.images, futures, strict=True)):
        name = image_name(image, index + 1)
        try:
            found = future.result()
        except RowError as error:
            raise document.error(f"{name} {error.message}", error.row_code, error.fix) from None
        if document.image_digests and found.digest != document.image_digests[index]:
            raise document.error(
                f"{name} has changed since the run began.", CHANGED_IMAGE, "restore the file, or start a new run with the changed one."
            )
        assert found.pixels is not None
        pixels.append(found.pixels)
    return pixels


class ImageBatches(Sequence[PackedBatch]):
    """Batches that always hold the same documents and decode their images each time they are gone through.

    Args:
        rows: the documents of each batch; an empty one becomes a filler.
        workers: decode.
        filler: the batch without documents.
    """

    def __init__(self, rows: Sequence[Sequence[Document]], workers: ImageWorkers, filler: PackedBatch) -> None:
        self._rows = rows
        self._workers = workers
        self._filler = filler

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PackedBatch: ...

    @overload
    def __getitem__(self, index: slice) -> ImageBatches: ...

    def __getitem__(self, index: int | slice) -> PackedBatch | ImageBatches:
        if isinstance(index, slice):
            return ImageBatches(self._rows[index], self._workers, self._filler)
        return self._pending(index).result()

    def __iter__(self) -> Iterator[PackedBatch]:
        ahead: deque[PendingBatch] = deque()
        try:
            for index in range(len(self)):
                ahead.append(self._pending(index))
                if len(ahead) > LOOK_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for pending in ahead:
                pending.cancel()

    def _pending(self, index: int) -> PendingBatch:
        return PendingBatch(self._rows[index], self._workers, self._filler)
