"""Decodes the images of rows while the rows are read, so that a broken image is a fault of its row and is known before training.

Workers decode ahead, but outcomes come back in the order of the rows. Rows without images pass through.
Exercise it: ``pytest tests/ms4_train/data/test_image_check.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace

from ms4_train.data.image_workers import DecodedImage, ImageWorkers
from ms4_train.data.pipeline import Outcome
from ms4_train.data.rows import Fault, RawRow
from ms4_train.errors import RowError
from ms4_train.untrusted import EncodedImage

WINDOW_IMAGES = 64
"""Images under way at once; bounds what is held, and is enough for any number of workers that one machine has."""


def with_images_checked(outcomes: Iterable[tuple[RawRow, Outcome]], workers: ImageWorkers | None) -> Iterator[tuple[RawRow, Outcome]]:
    """The same outcomes in the same order; one whose image cannot be decoded becomes a fault.

    Args:
        outcomes: rows and what became of them.
        workers: None decodes nothing (the form of rows is checked without a tokenizer).

    Raises:
        MissingDependencyError: workers cannot start.
    """
    waiting: deque[tuple[RawRow, Outcome, list[Future[DecodedImage]]]] = deque()
    under_way = 0
    try:
        for raw, outcome in outcomes:
            futures = [] if workers is None or outcome.fault is not None else [workers.check(image) for image in outcome.images]
            waiting.append((raw, outcome, futures))
            under_way += len(futures)
            while waiting and (under_way > WINDOW_IMAGES or all(future.done() for future in waiting[0][2])):
                under_way -= len(waiting[0][2])
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())
    finally:
        for _, _, futures in waiting:
            for future in futures:
                future.cancel()


def _settled(raw: RawRow, outcome: Outcome, futures: list[Future[DecodedImage]]) -> tuple[RawRow, Outcome]:
    if not futures:
        return raw, outcome
    found: list[DecodedImage] = []
    for number, (image, future) in enumerate(zip(outcome.images, futures, strict=True), start=1):
        try:
            found.append(future.result())
        except RowError as error:
            fault = Fault(raw.source, raw.number, error.row_code, f"{image_name(image, number)} {error.message}", fix=error.fix)
            return raw, replace(outcome, fault=fault)
    digests, sizes = tuple(image.digest for image in found), tuple(image.size for image in found)
    return raw, replace(outcome, image_digests=digests, image_bytes=sum(sizes))


def image_name(image: EncodedImage, number: int) -> str:
    """How messages call the ``number``-th image of a row."""
    return f"image {number}" if image.path is None else f"image {number} ({ascii(str(image.path))[1:-1]})"
