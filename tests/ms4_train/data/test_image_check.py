"""Images are decoded while rows are read: outcomes keep their order, and a broken image is a fault of its row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.image_rows import broken_png, image_chat, mixed_rows, png
from support.images import data_url
from support.rows import chat
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource, ImagesSection
from ms4_train.data import image_check
from ms4_train.data.image_check import image_name, with_images_checked
from ms4_train.data.image_workers import ImageWorkers, make_workers
from ms4_train.data.pipeline import Outcome, RowPipeline
from ms4_train.data.rows import RawRow
from ms4_train.untrusted import inspect_image


@pytest.fixture(scope="module")
def workers() -> Iterator[ImageWorkers]:
    shared = make_workers(ImagesSection(workers=1), tiny_tokenizer())
    yield shared
    shared.close()


def outcomes(folder: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[RawRow, Outcome]]:
    source = DatasetSource(path=str(folder / "rows.jsonl"))
    pipeline = RowPipeline(source, DataSection(train=[source]), tiny_tokenizer())
    for number, row in enumerate(rows, start=1):
        raw = RawRow(source.path, number, row)
        yield raw, pipeline.process(raw)


def test_order_stays_and_bytes_are_identified(tmp_path: Path, workers: ImageWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "WINDOW_IMAGES", 3)
    rows = mixed_rows(tmp_path, 13)
    checked = list(with_images_checked(outcomes(tmp_path, rows), workers))
    assert [raw.number for raw, _ in checked] == list(range(1, 14))
    assert all(outcome.fault is None for _, outcome in checked)
    for number, (_, outcome) in enumerate(checked):
        files = [png(seed) for seed in range(10 * number, 10 * number + (0, 1, 0, 2)[(number + 1) % 4])]
        assert outcome.image_digests == tuple(hashlib.blake2b(data, digest_size=16).hexdigest() for data in files)
        assert outcome.image_bytes == sum(map(len, files))


def test_a_broken_image_is_a_fault_at_its_row(tmp_path: Path, workers: ImageWorkers) -> None:
    (tmp_path / "b.png").write_bytes(broken_png())
    broken = {"type": "image_url", "image_url": {"url": data_url(broken_png())}}
    rows = [chat("q", "a"), image_chat("q", "a", "b.png"), *mixed_rows(tmp_path, 1), image_chat("q", "a", "pictures/0.png", broken)]
    first, second, third, fourth = (outcome for _, outcome in with_images_checked(outcomes(tmp_path, rows), workers))
    assert (first.fault, third.fault) == (None, None)
    assert second.fault is not None
    assert (second.fault.number, second.fault.code) == (2, "bad-image")
    assert f"image 1 ({tmp_path}/b.png) cannot be decoded" in second.fault.message
    assert fourth.fault is not None
    assert fourth.fault.message.startswith("image 2 cannot be decoded")


def test_without_workers_nothing_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(broken_png())
    ((_, outcome),) = with_images_checked(outcomes(tmp_path, [image_chat("q", "a", "b.png")]), None)
    assert (outcome.fault, outcome.image_digests) == (None, ())


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "\x1b[31m.png").write_bytes(png(0))
    assert "\x1b" not in image_name(inspect_image(tmp_path / "\x1b[31m.png"), 1)
