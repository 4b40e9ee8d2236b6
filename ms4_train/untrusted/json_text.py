"""Strict JSON and JSON lines: what the standard parser lets through (NaN, duplicate keys, endless digits) is refused.

Exercise it: ``pytest tests/ms4_train/untrusted/test_json_text.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted.files import decode_utf8, open_regular

MAX_NUMBER_CHARACTERS = 308
"""Longest number literal: digits beyond a double's range are a mistake or an attack (long integers parse in quadratic time)."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """A value inside the text that strict JSON does not allow."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON.")


def _strict_int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARACTERS:
        raise _Refused(f"a number of {len(digits)} characters; at most {MAX_NUMBER_CHARACTERS} are read.")
    return int(digits)


def _strict_float(digits: str) -> float:
    if len(digits) > MAX_NUMBER_CHARACTERS:
        raise _Refused(f"a number of {len(digits)} characters; at most {MAX_NUMBER_CHARACTERS} are read.")
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"the number {digits[:40]} does not fit a double.")
    return value


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"the key {_shown(twice)} stands twice in one object.")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_strict_object, parse_constant=_refuse_constant, parse_int=_strict_int, parse_float=_strict_float
)


def _shown(text: str) -> str:
    """A piece of outside text made safe and short for a message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _depth_exceeds(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def parse_json(text: str | bytes, *, file: str | Path | None = None, line: int | None = None, max_depth: int = 64) -> Any:
    """Parse strict JSON.

    NaN and infinities, numbers beyond a double or longer than 308 characters, duplicate keys, lone surrogates and nesting deeper than
    ``max_depth`` containers are refused. The caller bounds the size of ``text``.

    Args:
        text: the JSON text; bytes are decoded as UTF-8.
        file: named in errors.
        line: line number for errors, where the text is one line of a file; by default the line inside ``text``.
        max_depth: containers inside each other.

    Raises:
        UntrustedInputError: with file and line.
    """

    def refuse(message: str, at_line: int | None) -> UntrustedInputError:
        return UntrustedInputError(
            f"invalid JSON: {message}", file=file, line=line if line is not None else at_line, fix="correct the text."
        )

    if isinstance(text, bytes):
        text = decode_utf8(text, file=file, line=line)
    text = text.removeprefix("\ufeff")
    try:
        value = _DECODER.decode(text)
    except _Refused as error:
        raise refuse(str(error), None) from None
    except json.JSONDecodeError as error:
        raise refuse(f"{error.msg} at column {error.colno}.", error.lineno) from None
    except RecursionError:
        raise refuse(f"nested deeper than {max_depth} levels.", None) from None
    # Text with few brackets cannot be deep; the walk is skipped for almost every row.
    if text.count("[") + text.count("{") > max_depth and _depth_exceeds(value, max_depth):
        raise refuse(f"nested deeper than {max_depth} levels.", None)
    if _has_lone_surrogate(text, value):
        raise refuse("half of a surrogate pair, which no UTF-8 file can hold.", None)
    return value


def _has_lone_surrogate(text: str, value: Any) -> bool:
    try:
        text.encode("utf-8")
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def iter_json_lines(path: str | Path, *, max_line_bytes: int = 32 << 20) -> Iterator[tuple[int, Any | UntrustedInputError]]:
    """Read a JSON lines file one line at a time.

    Yields ``(line, value)`` with 1-based line numbers. Blank lines are skipped; a byte-order mark and CRLF are fine. A bad line is
    yielded as the ``UntrustedInputError`` that says what is wrong with it, and reading goes on, so that a caller can count faults.

    Raises:
        UntrustedInputError: the file itself cannot be read.
    """
    with open_regular(path) as handle:
        number = 0
        while True:
            try:
                raw = handle.readline(max_line_bytes + 1)
                if not raw:
                    return
                number += 1
                if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
                    _skip_line(handle)
                    yield (
                        number,
                        UntrustedInputError(
                            f"a line of more than {max_line_bytes:,} bytes.", file=path, line=number, fix="split or drop the row."
                        ),
                    )
                    continue
            except OSError as error:
                message = f"cannot be read on ({error.strerror})."
                raise UntrustedInputError(message, file=path, line=number + 1, fix="check the disk.") from None
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.strip(b" \t\r\n")
            if not raw:
                continue
            try:
                value = parse_json(raw, file=path, line=number)
            except UntrustedInputError as error:
                value = error
            yield number, value


def _skip_line(handle: BinaryIO) -> None:
    while (piece := handle.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass
