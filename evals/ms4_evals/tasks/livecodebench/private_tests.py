"""Reads the private tests of a row: JSON, or JSON in a pickled string, compressed, in base64.

Whoever controls a data set controls what ``pickle.loads`` does, so nothing here unpickles. A pickle of one string is a handful of opcodes
around its bytes; they are read by hand, and any other opcode is refused before anything it asks for could happen. What comes out must be a
list of flat objects of strings, so a small text cannot grow into a large structure.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_private_tests.py``.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from typing import Any

from ms4_evals.graders.livecodebench.problem import CodeTest
from ms4_train.errors import MS4Error
from ms4_train.untrusted import parse_json

MAX_ENCODED_BYTES = 512 << 20
MAX_TEXT_BYTES = 1 << 30
"""Bytes of a problem's tests once unpacked: compression can hide a thousand times its own size."""
MAX_TESTS = 10_000
MAX_OPCODES = 8

_PACKED_PIECE_BYTES = 1 << 20
_PIECE_BYTES = 16 << 20

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PAIR = rf"{_STRING}\s*:\s*{_STRING}"
_OBJECT = re.compile(rf"\{{\s*{_PAIR}(?:\s*,\s*{_PAIR}){{0,7}}\s*\}}", re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")

_LENGTH_OF_TEXT = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"}
"""BINUNICODE, SHORT_BINUNICODE, BINUNICODE8 -> their length field."""
_IGNORED_ARGUMENT = {b"\x80": 1, b"\x95": 8, b"\x94": 0, b"q": 1, b"r": 4}
"""PROTO, FRAME, MEMOIZE, BINPUT, LONG_BINPUT: opcodes around a string that do not change it -> bytes of their argument."""


class TestsUnreadable(Exception):
    """Why tests cannot be read, as one sentence."""

    __test__ = False


def decode_tests(stored: str) -> tuple[CodeTest, ...]:
    """The tests in the string that a row holds: ``public_test_cases``, or ``private_test_cases`` in either form.

    Raises:
        TestsUnreadable: neither form, or past a bound.
    """
    if len(stored) > MAX_ENCODED_BYTES:
        raise TestsUnreadable(f"the tests are longer than {MAX_ENCODED_BYTES:,} bytes.")
    text = stored if stored.lstrip()[:1] == "[" else read_pickled_text(_unpack(stored))
    return _read_list(text)


def read_pickled_text(data: bytes | bytearray) -> str:
    """The string in a pickle of nothing but one string (protocols 2 to 5), without unpickling.

    Raises:
        TestsUnreadable: it is anything else.
    """
    text: str | None = None
    position = 0
    for _ in range(MAX_OPCODES):
        opcode, position = bytes(data[position : position + 1]), position + 1
        if opcode == b"." and text is not None:
            if position != len(data):
                raise TestsUnreadable("the pickle goes on after its end.")
            return text
        if opcode in _IGNORED_ARGUMENT:
            position += _IGNORED_ARGUMENT[opcode]
        elif opcode in _LENGTH_OF_TEXT and text is None:
            text, position = _text_at(data, position, _LENGTH_OF_TEXT[opcode])
        else:
            raise TestsUnreadable(f"the pickle is not one string (opcode {opcode!r} at byte {position - 1}); nothing in it was run.")
    raise TestsUnreadable("the pickle is not one string: it has too many opcodes.")


def _text_at(data: bytes | bytearray, position: int, length_format: str) -> tuple[str, int]:
    start = position + struct.calcsize(length_format)
    if start > len(data):
        raise TestsUnreadable("the pickle ends too early.")
    (length,) = struct.unpack_from(length_format, data, position)
    if length > len(data) - start:
        raise TestsUnreadable("the pickle ends too early.")
    try:
        return str(memoryview(data)[start : start + length], "utf-8"), start + length
    except UnicodeDecodeError:
        raise TestsUnreadable("the pickled string is not UTF-8.") from None


def _unpack(stored: str) -> bytearray:
    try:
        packed = binascii.a2b_base64(stored.encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise TestsUnreadable("they are neither a JSON list nor base64.") from None
    machine, data = zlib.decompressobj(), bytearray()
    try:
        # In pieces on both sides: at once, zlib would hold input and result twice.
        for start in range(0, len(packed), _PACKED_PIECE_BYTES):
            piece, grown = packed[start : start + _PACKED_PIECE_BYTES], _PIECE_BYTES
            while piece or grown == _PIECE_BYTES:
                before = len(data)
                data += machine.decompress(piece, _PIECE_BYTES)
                piece, grown = machine.unconsumed_tail, len(data) - before
                if len(data) > MAX_TEXT_BYTES:
                    raise TestsUnreadable(f"they unpack to more than {MAX_TEXT_BYTES:,} bytes.")
            if machine.unused_data or (machine.eof and start + _PACKED_PIECE_BYTES < len(packed)):
                raise TestsUnreadable("the compressed data goes on after its end.")
    except zlib.error:
        raise TestsUnreadable("what base64 gives is not zlib's format, or it is damaged.") from None
    if not machine.eof:
        raise TestsUnreadable("the compressed data ends too early.")
    return data


def _read_list(text: str) -> tuple[CodeTest, ...]:
    """A JSON list of flat objects, parsed one object at a time."""
    tests: list[CodeTest] = []
    position = _after(text, 0, "[")
    while not _is_at(text, position, "]"):
        if tests:
            position = _after(text, position, ",")
        found = _OBJECT.match(text, position)
        if found is None:
            raise TestsUnreadable(f"test {len(tests) + 1} is not a flat JSON object of strings (at character {position}).")
        if len(tests) >= MAX_TESTS:
            raise TestsUnreadable(f"there are more than {MAX_TESTS:,} tests.")
        tests.append(_read_test(found.group(), len(tests) + 1))
        position = _skip(text, found.end())
    if _skip(text, position + 1) != len(text):
        raise TestsUnreadable("there is text after the list.")
    return tuple(tests)


def _after(text: str, position: int, character: str) -> int:
    position = _skip(text, position)
    if not _is_at(text, position, character):
        raise TestsUnreadable(f"they are not a JSON list ({character!r} is missing at character {position}).")
    return _skip(text, position + 1)


def _is_at(text: str, position: int, character: str) -> bool:
    return text[position : position + 1] == character


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _read_test(text: str, number: int) -> CodeTest:
    try:
        test: Any = parse_json(text)
    except MS4Error as error:
        raise TestsUnreadable(f"test {number}: {error.message}") from None
    if not {"input", "output"} <= set(test):
        raise TestsUnreadable(f"test {number} has no input or no output.")
    if test.get("testtype", "stdin") not in {"stdin", "functional"}:
        raise TestsUnreadable(f"test {number} is of an unknown type.")
    return CodeTest(test["input"], test["output"])
