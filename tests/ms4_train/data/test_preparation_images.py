"""Rows with images, read once: what is counted, what is a fault, and what the fingerprint sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.image_rows import broken_png, image_chat, mixed_file, mixed_rows, png
from support.images import hostile_bytes
from support.rows import write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.images import image_tokens
from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import prepare
from ms4_train.data.preparation import PROGRESS_EVERY_IMAGE_ROWS, DocumentStore, PreparedData, check_rows
from ms4_train.errors import DataError
from ms4_train.untrusted import inspect_image


def section(path: Path, **fields: Any) -> DataSection:
    return DataSection(train=[DatasetSource(path=str(path))], **{"max_length": 200, "images": {"workers": 1}, **fields})


def prepared(path: Path, **fields: Any) -> PreparedData:
    return prepare(section(path, **fields), tiny_tokenizer())


def test_images_are_counted_by_their_own_sizes(tmp_path: Path) -> None:
    path = mixed_file(tmp_path, 8)
    data = prepared(path)
    seeds = [seed for number in range(8) for seed in range(10 * number, 10 * number + (0, 1, 0, 2)[(number + 1) % 4])]
    spec, (counts,) = tiny_tokenizer().image_spec, data.survey.sources
    assert spec is not None
    images = [inspect_image(png(seed)) for seed in seeds]
    cells = sum(image_tokens(image.width, image.height, spec).cells for image in images)
    assert (counts.images, counts.image_tokens, counts.image_patches) == (6, cells, 4 * cells)
    assert counts.image_bytes == sum(len(png(seed)) for seed in seeds)
    img = tiny_tokenizer().ids.img
    documents = [data.train[0].document(index) for index in range(8)]
    assert cells == sum(int((document.token_ids_t == img).sum()) for document in documents)
    assert f"  images: 6, of {cells} image tokens and {4 * cells} patches; 0.0 MB encoded" in data.survey.lines()
    assert data.survey.to_dict()["images"] == 6
    assert data.has_images
    assert [len(document.images) for document in documents] == [1, 0, 2, 0, 1, 0, 2, 0]
    assert data.workers.process_ids() == []
    assert check_rows(section(path).train[0], section(path), tiny_tokenizer()).to_dict() == data.survey.to_dict()


def test_text_rows_start_no_worker_and_print_no_images(tmp_path: Path) -> None:
    data = prepared(write_rows(tmp_path / "a.jsonl", [image_chat("q", "a")]))
    assert not any("images" in line for line in data.survey.lines())
    assert not data.has_images


def test_every_bad_image_is_found_before_training_at_its_line(tmp_path: Path) -> None:
    good = mixed_rows(tmp_path, 1)[0]
    for name, data in (("broken", broken_png()), ("huge", hostile_bytes("144 megapixels")), ("empty", b""), ("svg", hostile_bytes("svg"))):
        (tmp_path / f"{name}.png").write_bytes(data)
    sources = [
        "broken.png",
        "huge.png",
        "empty.png",
        "svg.png",
        "none.png",
        "../out.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
    ]
    bad = [image_chat("q", "a", {"type": "image_url", "image_url": {"url": source}}) for source in sources]
    path = write_rows(tmp_path / "rows.jsonl", [good, *bad, good])
    data = prepared(path)
    codes = [(fault.number, fault.code) for fault in data.survey.faults]
    assert codes == [*((number, "bad-image") for number in range(2, 7)), *((number, "image-refused") for number in range(7, 10))]
    assert data.survey.rows_kept == 2
    with pytest.raises(DataError, match=r"8 rows cannot be used:\n.*rows\.jsonl:2: bad-image"):
        data.require_usable()
    prepared(path, invalid_rows="skip").require_usable()
    # The form alone: headers are read, pixels are not.
    form = check_rows(section(path).train[0], section(path), None)
    assert [fault.number for fault in form.faults] == list(range(3, 10))


def test_bounds_and_root_come_from_the_section(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [image_chat("q", "a", "a.png")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(3))
    assert [fault.code for fault in prepared(path).survey.faults] == ["bad-image"]
    root = str(tmp_path / "pictures")
    assert prepared(path, images={"workers": 1, "root": root}).survey.rows_kept == 1
    for bound in ({"max_bytes": 100}, {"max_pixels": 5999}, {"max_side": 99}):
        (fault,) = prepared(path, images={"workers": 1, "root": root, **bound}).survey.faults
        assert (fault.code, fault.number) == ("bad-image", 1)


def test_the_fingerprint_sees_the_bytes_of_images_and_not_their_place(tmp_path: Path) -> None:
    names = ("here", "there", "inline", "other")
    for name in names:
        (tmp_path / name).mkdir()
    here = prepared(mixed_file(tmp_path / "here", 4)).fingerprint()
    assert prepared(mixed_file(tmp_path / "there", 4)).fingerprint() == here
    assert prepared(mixed_file(tmp_path / "inline", 4, inline=True)).fingerprint() == here
    other = mixed_file(tmp_path / "other", 4)
    (tmp_path / "other" / "pictures" / "20.png").write_bytes(png(24))
    assert prepared(other).fingerprint() != here


def test_rows_that_ask_the_same_about_other_images_are_split(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for seed in range(20):
        (tmp_path / "pictures" / f"{seed}.png").write_bytes(png(seed))
    path = write_rows(tmp_path / "rows.jsonl", [image_chat("what is this?", str(seed), f"pictures/{seed}.png") for seed in range(20)])
    held_out = prepared(path, validation_fraction=0.5).survey.sources[0].rows_held_out
    assert 3 < held_out < 17


def test_progress_is_told_more_often_where_images_are_decoded(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", mixed_rows(tmp_path, 1) * PROGRESS_EVERY_IMAGE_ROWS)
    told: list[int] = []
    prepare(section(path), tiny_tokenizer(), progress=lambda _, rows: told.append(rows))
    assert told == [PROGRESS_EVERY_IMAGE_ROWS]


def test_a_store_keeps_images_with_their_rows(tmp_path: Path) -> None:
    first = prepared(mixed_file(tmp_path, 4)).train[0]
    documents = [first.document(index) for index in range(4)]
    store = DocumentStore(documents)
    assert store.has_images
    for index, document in enumerate(documents):
        again = store.document(index)
        assert (again.images, again.image_digests) == (document.images, document.image_digests)
