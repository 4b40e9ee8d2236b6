"""Reading comma-separated tables from outside, bounded: the questions of AA-LCR come in one.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_tables.py``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ms4_train.errors import EvaluationError
from ms4_train.untrusted.files import open_regular

MAX_FILE_BYTES = 256 << 20
MAX_FIELD_CHARACTERS = 8 << 20
MAX_ROWS = 10_000
MAX_COLUMNS = 64


def iter_table(path: Path, *, max_bytes: int = MAX_FILE_BYTES, max_rows: int = MAX_ROWS) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table as ``(line, {column: text})``, one at a time; the line is the last one that the row stands on.

    Raises:
        UntrustedInputError: the file is missing or no regular file.
        EvaluationError: it is no UTF-8 table of rows as long as its head, or exceeds a bound.
    """
    # The module's own limit is one for the whole process, low enough (131,072) to refuse a set of documents; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    with open_regular(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        if raw.seek(0, io.SEEK_END) > max_bytes:
            raise EvaluationError(
                f"is larger than the {max_bytes:,} bytes allowed here.", file=path, fix="check that it is the right file."
            )
        raw.seek(0)
        reader = csv.reader(text, strict=True)
        try:
            head = next(reader, [])
            if not head or len(head) > MAX_COLUMNS or len(set(head)) != len(head):
                raise EvaluationError("the first line names no columns, or one twice.", file=path, line=1, fix="give the table a head.")
            for count, row in enumerate(reader, start=1):
                if count > max_rows:
                    raise EvaluationError(f"more than {max_rows:,} rows.", file=path, fix="check that it is the right file.")
                if len(row) != len(head):
                    raise EvaluationError(
                        f"a row of {len(row)} fields under a head of {len(head)}.", file=path, line=reader.line_num, fix="correct the row."
                    )
                if any(len(field) > MAX_FIELD_CHARACTERS for field in row):
                    raise EvaluationError(
                        f"a field of more than {MAX_FIELD_CHARACTERS:,} characters.",
                        file=path,
                        line=reader.line_num,
                        fix="correct the row.",
                    )
                yield reader.line_num, dict(zip(head, row, strict=True))
        except csv.Error as error:
            raise EvaluationError(f"is no table ({error}).", file=path, line=reader.line_num, fix="correct the file.") from None
        except UnicodeDecodeError as error:
            raise EvaluationError(
                f"is not UTF-8 text (byte 0x{error.object[error.start]:02x}).", file=path, line=reader.line_num, fix="save it as UTF-8."
            ) from None
