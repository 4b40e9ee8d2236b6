"""Content of one message: the forms of text and thinking (images: ``test_image_fields``)."""

from __future__ import annotations

from typing import Any

import pytest

from ms4_train.chat.content_fields import Content, read_content, read_thinking_fields
from ms4_train.chat.image_fields import RowImages
from ms4_train.errors import RowError


def read(content: Any, role: str = "assistant") -> Content:
    return read_content(content, "content", role, RowImages(None))


def test_text_in_every_form() -> None:
    assert read(None) == Content()
    assert read("a") == Content("a")
    assert read([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == Content("ab")
    assert read([]) == Content()


def test_thinking_parts() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "t"}, {"type": "text", "text": "u"}], "closed": False}
    assert read([thought, {"type": "text", "text": "a"}]) == Content("a", "tu", False)
    for bad in ([thought, thought], [{"type": "text", "text": "a"}, thought], [{"type": "thinking", "thinking": 5}]):
        with pytest.raises(RowError) as caught:
            read(bad)
        assert caught.value.row_code == "bad-content"


@pytest.mark.parametrize("content", [5, b"a", {"type": "text"}, ["a"], [None], [{"text": "a"}], [{"type": 5}]])
def test_other_forms_are_refused(content: Any) -> None:
    with pytest.raises(RowError) as caught:
        read(content)
    assert caught.value.row_code == "bad-content"


def test_thinking_beside_the_content() -> None:
    assert read_thinking_fields({"reasoning": "t", "thinking": ""}, "m") == "t"
    assert read_thinking_fields({"content": "a"}, "m") is None
    with pytest.raises(RowError, match="differ"):
        read_thinking_fields({"reasoning": "t", "thinking": "u"}, "m")
