"""Image parts of messages and the images column: every accepted form, and the code of everything refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.images import HOSTILE, data_url, encoded, hostile_bytes, picture

from ms4_train.chat import ImagePart, Message, read_prompt, read_row
from ms4_train.errors import RowError
from ms4_train.untrusted import ImageLimits, ImageReader

PNG = encoded(picture(30, 20))
URL = data_url(PNG)
ASSISTANT = {"role": "assistant", "content": "a"}
TEXT = {"type": "text", "text": "q"}
PLACE = {"type": "image"}


@pytest.fixture
def reader(tmp_path: Path) -> ImageReader:
    (tmp_path / "a.png").write_bytes(PNG)
    return ImageReader(root=tmp_path)


def row(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ASSISTANT], **fields}


FORMS: dict[str, dict[str, Any]] = {
    "openai": {"type": "image_url", "image_url": {"url": URL}},
    "openai with detail": {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    "openai, short": {"type": "image_url", "image_url": URL},
    "openai, a path": {"type": "image_url", "image_url": {"url": "a.png"}},
    "url": {"type": "image", "url": URL},
    "url with nulls, as Arrow fills them": {"type": "image", "text": None, "url": URL, "path": None, "image": None},
    "path": {"type": "image", "path": "a.png"},
    "base64": {"type": "image", "base64": base64.b64encode(PNG).decode()},
    "image, a path": {"type": "image", "image": "a.png"},
    "image, a data url": {"type": "image", "image": URL},
    "image, bytes": {"type": "image", "image": PNG},
    "image, a Parquet struct": {"type": "image", "image": {"bytes": PNG, "path": "name-only.png"}},
    "image, a Parquet struct without bytes": {"type": "image", "image": {"bytes": None, "path": "a.png"}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, reader: ImageReader) -> None:
    message = read_row(row(FORMS[form], TEXT), images=reader).messages[0]
    assert message.text == "q"
    part = message.parts[0]
    assert isinstance(part, ImagePart)
    assert (part.image.width, part.image.height) == (30, 20)
    assert message.parts[1:] == ("q",)
    assert message.images == (part.image,)


def test_parts_keep_their_order_and_neighbouring_texts_are_one(reader: ImageReader) -> None:
    image = FORMS["path"]
    empty = {"type": "text", "text": ""}
    message = read_row(row(TEXT, TEXT, image, empty, image, TEXT, empty, TEXT), images=reader).messages[0]
    assert [part if isinstance(part, str) else "image" for part in message.parts] == ["qq", "image", "image", "qq"]
    assert message.text == "qqqq"


def test_text_rows_have_no_parts(reader: ImageReader) -> None:
    assert read_row(row(TEXT), images=reader) == read_row(row(TEXT))
    assert read_row(row(TEXT)).messages[0].parts == ()


def test_an_image_alone_is_a_turn(reader: ImageReader) -> None:
    assert read_row(row(FORMS["path"]), images=reader).messages[0].text == ""
    with pytest.raises(RowError) as caught:
        read_row(row({"type": "text", "text": " "}), images=reader)
    assert caught.value.row_code == "empty-user"


def test_tools_may_answer_with_images(reader: ImageReader) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "tool_call_id": "c", "content": [TEXT, FORMS["path"]]}
    messages = read_row({"messages": [{"role": "user", "content": "q"}, calling, result, ASSISTANT]}, images=reader).messages
    assert len(messages[2].images) == 1
    assert read_prompt([{"role": "user", "content": "q"}, calling, result], images=reader).images == messages[2].images


def test_a_column_fills_places_in_order(reader: ImageReader) -> None:
    column = [{"bytes": encoded(picture(width, 5)), "path": None} for width in (7, 8, 9)]
    first = {"role": "user", "content": [PLACE, TEXT, FORMS["path"], PLACE]}
    second = {"role": "user", "content": [{"type": "image", "text": None}]}
    read = read_row({"messages": [first, ASSISTANT, second, ASSISTANT], "images": column}, images=reader)
    assert [image.width for image in read.images] == [7, 30, 8, 9]
    assert read_row(row(TEXT, images=[]), images=reader).images == ()
    assert read_row(row(TEXT, images=None)).images == ()


BAD: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("image-count", lambda: row(PLACE, TEXT)),
    ("image-count", lambda: row(PLACE, PLACE, images=[PNG])),
    ("image-count", lambda: row(PLACE, images=[PNG, PNG])),
    ("image-count", lambda: row(TEXT, images=[PNG])),
    ("bad-image", lambda: row(PLACE, images="a.png")),
    ("bad-image", lambda: row(PLACE, images=[None])),
    ("bad-image", lambda: row(PLACE, images=[{"bytes": None, "path": None}])),
    ("bad-image", lambda: row(PLACE, images=[3])),
    ("bad-image", lambda: row({"type": "image_url"})),
    ("bad-image", lambda: row({"type": "image_url", "image_url": {"url": None}})),
    ("bad-image", lambda: row({"type": "image_url", "image_url": {"url": PNG}})),
    ("bad-image", lambda: row({"type": "image", "url": URL, "path": "a.png"})),
    ("bad-image", lambda: row({"type": "image", "path": 5})),
    ("bad-image", lambda: row({"type": "image", "path": "gone.png"})),
    ("bad-image", lambda: row({"type": "image", "base64": "?"})),
    ("bad-image", lambda: row({"type": "image", "url": "data:image/png;base64,AAAA"})),
    ("image-refused", lambda: row({"type": "image", "path": "../a.png"})),
    ("image-refused", lambda: row({"type": "image", "path": "/etc/passwd"})),
    ("image-refused", lambda: row({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})),
    ("image-refused", lambda: row({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}})),
    ("unsupported-content", lambda: row({"type": "video", "video": "a.mp4"})),
    ("unsupported-content", lambda: row({"type": "input_audio", "input_audio": {"data": ""}})),
    (
        "unsupported-content",
        lambda: {"messages": [{"role": "system", "content": [FORMS["path"]]}, {"role": "user", "content": "q"}, ASSISTANT]},
    ),
    (
        "unsupported-content",
        lambda: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [TEXT, FORMS["path"]]}]},
    ),
]


@pytest.mark.parametrize(("code", "bad"), BAD)
def test_bad_images_are_refused_with_their_code(code: str, bad: Callable[[], dict[str, Any]], reader: ImageReader) -> None:
    with pytest.raises(RowError) as caught:
        read_row(bad(), images=reader)
    assert caught.value.row_code == code
    assert caught.value.key
    assert caught.value.fix
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("form", FORMS)
def test_without_a_reader_images_are_refused(form: str) -> None:
    for bad in (lambda: read_row(row(FORMS[form], TEXT)), lambda: read_prompt([{"role": "user", "content": [FORMS[form]]}])):
        with pytest.raises(RowError) as caught:
            bad()
        assert caught.value.row_code == "unsupported-content"
        assert caught.value.fix
    with pytest.raises(RowError) as caught:
        read_row(row(TEXT, images=[PNG]))
    assert caught.value.row_code == "unsupported-content"


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("damaged pixels", "pixels that end early", "webp of two sizes")])
def test_a_hostile_image_is_a_fault_of_its_row(name: str) -> None:
    try:
        read_row(row({"type": "image", "image": hostile_bytes(name)}, TEXT), images=ImageReader())
    except RowError as error:
        assert error.row_code == "bad-image"  # noqa: PT017 (some are only found by decoding)
    else:
        assert name.startswith("truncated")


def test_the_place_of_a_fault_is_named(reader: ImageReader) -> None:
    with pytest.raises(RowError) as caught:
        read_row(row(TEXT, {"type": "image", "path": "gone.png"}), images=reader)
    assert caught.value.key == "messages[0].content[1].path"
    assert "gone.png" in caught.value.message
    with pytest.raises(RowError) as caught:
        read_row(row(PLACE, images=[{"bytes": b"x", "path": None}]), images=reader)
    assert caught.value.key == "images[0]"
    with pytest.raises(RowError, match="at most 29"):
        read_row(row(FORMS["openai"]), images=ImageReader(limits=ImageLimits(max_side=29)))


def test_rows_with_images_are_values(reader: ImageReader) -> None:
    read = read_row(json.loads(json.dumps(row(FORMS["openai"], TEXT))), images=reader)
    assert read == read_row(row(FORMS["openai, short"], TEXT), images=reader)
    assert hash(read) == hash(read_row(row(FORMS["openai, short"], TEXT), images=reader))
    assert read.messages[0] != Message("user", "q")
