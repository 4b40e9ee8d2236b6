"""Tables from outside: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ms4_evals.tasks.lcr.tables import iter_table
from ms4_train.errors import EvaluationError, MS4Error, UntrustedInputError


def test_rows_come_with_their_last_line(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n2,"say ""so"""\r\n')
    assert list(iter_table(file)) == [(3, {"a": "1", "b": "x\ny"}), (4, {"a": "2", "b": 'say "so"'})]


def test_a_field_as_long_as_a_set_of_documents_is_read(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1," + "x" * 600_000 + "\n")
    assert [len(row["b"]) for _, row in iter_table(file)] == [600_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no columns"),
        (b"a,a\n1,2\n", "names no columns, or one twice"),
        (b"a,b\n1\n", "a row of 1 fields"),
        (b"a,b\n1,2,3\n", "a row of 3 fields"),
        (b'a,b\n1,"open\n', "is no table"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        (b"a\n" + b"x" * (9 << 20) + b"\n", "field"),
    ],
)
def test_other_bytes_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        list(iter_table(file))


def test_bounds_hold(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a\n" + "1\n" * 20)
    with pytest.raises(EvaluationError, match="more than 10 rows"):
        list(iter_table(file, max_rows=10))
    with pytest.raises(EvaluationError, match="larger than the 16 bytes"):
        list(iter_table(file, max_bytes=16))
    assert len(list(iter_table(file))) == 20
    with pytest.raises(UntrustedInputError, match="no such file"):
        list(iter_table(tmp_path / "none.csv"))
    with pytest.raises(MS4Error, match="folder"):
        list(iter_table(tmp_path))
