"""Batches with pixels: in document order, named rows where an image cannot be had, evaluation that can be repeated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_rows import broken_png, png
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.images import to_image_batch
from ms4_train.config.schema import ImagesSection
from ms4_train.data.batch import filler_batch
from ms4_train.data.image_batches import ImageBatches, PendingBatch
from ms4_train.data.image_workers import ImageWorkers, make_workers
from ms4_train.data.rows import Document
from ms4_train.errors import RowError
from ms4_train.untrusted import EncodedImage, inspect_image

FILLER = filler_batch(1, 2)


@pytest.fixture(scope="module")
def workers() -> Iterator[ImageWorkers]:
    shared = make_workers(ImagesSection(workers=1), tiny_tokenizer())
    yield shared
    shared.close()


def document(number: int, *images: EncodedImage, digests: tuple[str, ...] = ()) -> Document:
    return Document(f"rows.jsonl:{number}", np.array([1, number, 2], np.int32), np.ones(3, np.bool_), images=images, image_digests=digests)


def pixels(*images: EncodedImage) -> torch.Tensor:
    spec = tiny_tokenizer().image_spec
    assert spec is not None
    return to_image_batch(images, spec).patches_pi


def test_images_stand_in_document_order(workers: ImageWorkers) -> None:
    images = [inspect_image(png(seed)) for seed in range(3)]
    batch = PendingBatch([document(10, images[2]), document(11), document(12, images[0], images[1])], workers, FILLER).result()
    assert batch.images is not None
    assert torch.equal(batch.images.patches_pi, pixels(images[2], images[0], images[1]))
    # Negative control: another order is another batch.
    assert not torch.equal(batch.images.patches_pi[:4], pixels(images[0])[:4])
    assert batch.row_ids == [f"rows.jsonl:{number}" for number in (10, 11, 12)]
    assert PendingBatch([document(11)], workers, FILLER).result().images is None
    assert PendingBatch([], workers, FILLER).result() is FILLER


def test_an_image_that_cannot_be_had_names_its_row(workers: ImageWorkers, caplog: pytest.LogCaptureFixture) -> None:
    documents = [document(10, inspect_image(png(0))), document(11, inspect_image(png(1)), inspect_image(broken_png()))]
    with pytest.raises(RowError, match=r"rows\.jsonl:11: image 2 cannot be decoded") as info:
        PendingBatch(documents, workers, FILLER).result()
    assert (info.value.file, info.value.line, info.value.row_code) == ("rows.jsonl", 11, "bad-image")
    with caplog.at_level(logging.WARNING):
        batch = PendingBatch(documents, workers, FILLER).result(skip_bad=True)
    assert batch.row_ids == ["rows.jsonl:10"]
    assert batch.images is not None
    assert torch.equal(batch.images.patches_pi, pixels(inspect_image(png(0))))
    assert "left out: rows.jsonl:11" in caplog.text
    assert PendingBatch(documents[1:], workers, FILLER).result(skip_bad=True) is FILLER


def test_an_image_whose_bytes_changed_is_refused(tmp_path: Path, workers: ImageWorkers) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(0))
    image = inspect_image(path)
    checked = document(10, image, digests=(workers.check(image).result().digest,))
    assert PendingBatch([checked], workers, FILLER).result().images is not None
    path.write_bytes(png(4))  # of the same size, so that nothing else would notice
    assert inspect_image(path) == image
    with pytest.raises(RowError, match=r"image 1 .* has changed since the run began") as info:
        PendingBatch([checked], workers, FILLER).result()
    assert info.value.row_code == "changed-image"
    assert PendingBatch([document(10, image)], workers, FILLER).result().images is not None, "negative control: nobody read it before"


def test_evaluation_batches_can_be_gone_through_again(workers: ImageWorkers) -> None:
    rows = [[document(number, inspect_image(png(number)))] for number in range(5)] + [[]]
    batches = ImageBatches(rows, workers, FILLER)
    assert len(batches) == 6
    for _ in range(2):
        for number, batch in enumerate(batches):
            assert batch is FILLER if number == 5 else batch.row_ids == [f"rows.jsonl:{number}"]
            assert number == 5 or torch.equal(batch.images.patches_pi, pixels(inspect_image(png(number))))  # type: ignore[union-attr]
    assert batches[1].row_ids == ["rows.jsonl:1"]
    assert [batch.row_ids for batch in batches[2:4]] == [["rows.jsonl:2"], ["rows.jsonl:3"]]
    assert next(iter(batches)).row_ids == ["rows.jsonl:0"]
