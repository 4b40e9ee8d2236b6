"""Checked records: what ``ToolCall.parsed`` accepts."""

from __future__ import annotations

import pytest

from ms4_train.chat import ChatRow, Message, ToolCall
from ms4_train.errors import UntrustedInputError


def test_arguments_are_parsed_strictly() -> None:
    assert ToolCall("f", '{"a": [1, null]}').parsed() == {"a": [1, None]}
    for text in ['{"a": 1', '{"a": 1, "a": 2}', '{"a": NaN}', ""]:
        with pytest.raises(UntrustedInputError):
            ToolCall("f", text).parsed()
    with pytest.raises(ValueError, match="list"):
        ToolCall("f", "[1]").parsed()


def test_rows_are_values() -> None:
    assert ChatRow((Message("user", "a"),)) == ChatRow((Message("user", "a"),))
    assert hash(ChatRow((Message("user", "a"),))) == hash(ChatRow((Message("user", "a"),)))
