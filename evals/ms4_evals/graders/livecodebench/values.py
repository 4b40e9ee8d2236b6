"""Values that a function returned, carried out of the sandbox: an encoding that keeps what JSON would lose, and its reading.

``ENCODER`` is the text of a function that programs inside the sandbox include; ``decode`` reads what it wrote. Lists, texts, truth
values, null and ordinary numbers stand for themselves; the rest is an object with one key, which says what it was. What no JSON can equal
(a set, an instance of the candidate's own class) is ``other`` and equals nothing: an ``__eq__`` of the candidate's is never called.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_values.py``.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

MAX_DEPTH = 150
"""Of the encoded text; the encoder gives up (``other``) at a depth of values that stays below it."""

ENCODER = r"""
def _encode(value, depth=0):
    if value is None or value is True or value is False:
        return value
    if depth > 50:
        return {"other": "nested too deeply"}
    kind = type(value)
    if isinstance(value, str):
        text = str.__str__(value)
        return text if text.isprintable() or text.isascii() else {"text": text.encode("utf-8", "surrogatepass").hex()}
    if isinstance(value, int):
        number = int.__pos__(value)
        bits = number.bit_length()
        return number if bits < 900 else {"int": hex(number)} if bits <= 166_096 else {"huge": bits}
    if isinstance(value, float):
        number = float.__pos__(value)
        return number if number - number == 0 else {"float": float.__repr__(number)}
    if isinstance(value, list):
        return [_encode(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, depth + 1) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, depth + 1), _encode(item, depth + 1)] for key, item in dict.items(value)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        plain = value.tolist()
        return {"array": [value.size, _encode(plain, depth + 1)]} if kind.__name__ == "ndarray" else _encode(plain, depth + 1)
    if kind.__module__ == "fractions" and kind.__name__ == "Fraction":
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return {"decimal": str(value)}
    return {"other": kind.__name__}
"""


class _Other:
    """Equal to nothing, itself included."""

    __hash__ = object.__hash__

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<{self._name}>"


class HugeInteger(_Other):
    """More than 50,000 digits, which LiveCodeBench fails to print; no test expects that many."""


class Array(list[Any]):
    """A numpy array that was returned, as lists. LiveCodeBench fails on one of more than one number, so ``size`` is kept."""

    size = 0


def decode(text: bytes, *, plain: bool) -> Any:
    """The value that ``ENCODER`` wrote.

    Args:
        text: one JSON document from the sandbox.
        plain: tuples, wherever they stand, become lists; else only lists are lists.

    Raises:
        UntrustedInputError: the text is not what the encoder writes; a candidate wrote it.
    """
    return decode_value(parse_json(text, max_depth=MAX_DEPTH), plain=plain)


def decode_value(value: Any, *, plain: bool) -> Any:
    """The same for a document that has been parsed."""
    if isinstance(value, list):
        return [decode_value(item, plain=plain) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, content),) = value.items()
        return _decoded(kind, content, plain)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UntrustedInputError("a returned value is not encoded as it should be", fix="none; the program tampered with it.") from error


def _decoded(kind: str, content: Any, plain: bool) -> Any:
    if kind == "tuple":
        items = [decode_value(item, plain=plain) for item in content]
        return items if plain else tuple(items)
    if kind == "dict":
        return {decode_value(key, plain=plain): decode_value(item, plain=plain) for key, item in content}
    if kind == "text":
        return bytes.fromhex(content).decode("utf-8", "replace")
    if kind == "int":
        return int(content, 16)
    if kind == "huge":
        return HugeInteger(f"integer of {content} bits")
    if kind == "float":
        return float(content)
    if kind == "fraction":
        return Fraction(int(content[0], 16), int(content[1], 16))
    if kind == "decimal":
        return Decimal(content)
    if kind == "array":
        inner = decode_value(content[1], plain=plain)
        array = Array(inner if isinstance(inner, list) else [inner])
        array.size = content[0]
        return array
    return _Other(str(content)[:100])
