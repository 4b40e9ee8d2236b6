"""Records of rows and faults."""

from __future__ import annotations

import numpy as np

from ms4_train.data.rows import Document, Fault, RawRow
from ms4_train.errors import DataError, RowError, UntrustedInputError


def test_a_fault_says_where_and_what() -> None:
    raw = RawRow("rows.jsonl", 7, None)
    fault = Fault.from_error(raw, RowError("the user's turn is empty.", row_code="empty-user", key="messages[0]", fix="remove it."))
    assert str(fault) == "rows.jsonl:7: empty-user: messages[0]: the user's turn is empty."
    assert str(fault.to_error()) == "rows.jsonl:7: messages[0]: the user's turn is empty. Fix: remove it."
    assert fault.to_error().row_code == "empty-user"


def test_other_errors_have_codes_too() -> None:
    raw = RawRow("rows.jsonl", 7, None)
    assert Fault.from_error(raw, UntrustedInputError("invalid JSON")).code == "bad-json"
    assert Fault.from_error(raw, DataError("unreadable")).code == "data"


def test_the_first_token_is_never_a_target() -> None:
    document = Document("a:1", np.array([1, 5, 6], dtype=np.int32), np.array([True, False, True]))
    assert (len(document), document.num_trained) == (3, 1)
