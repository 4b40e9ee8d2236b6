"""Values survive the way out of a process: the encoder runs in one of its own, and Python's ``==`` there says what should come out."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest

from ms4_evals.graders.livecodebench.values import ENCODER, Array, decode, decode_value
from ms4_train.errors import UntrustedInputError

# expression, what it is with tuples kept, what it is with tuples as lists
CASES = [
    ("None", None, None),
    ("True", True, True),
    ("-7", -7, -7),
    ("10 ** 299", 10**299, 10**299),
    ("-(10 ** 4000)", -(10**4000), -(10**4000)),
    ("0.1", 0.1, 0.1),
    ("-0.0", -0.0, -0.0),
    ("1e308 * 10", float("inf"), float("inf")),
    ("'text'", "text", "text"),
    ("'two\\nlines'", "two\nlines", "two\nlines"),
    ("'gr\\u00fc\\u00dfe \\U0001f600'", "gr\u00fc\u00dfe \U0001f600", "gr\u00fc\u00dfe \U0001f600"),
    ("'\\u2028\\x00\\ue000'", "\u2028\x00\ue000", "\u2028\x00\ue000"),
    ("[1, [2, 'x'], None]", [1, [2, "x"], None], [1, [2, "x"], None]),
    ("(1, (2, 3))", (1, (2, 3)), [1, [2, 3]]),
    ("[(1, 2)]", [(1, 2)], [[1, 2]]),
    ("{1: (2,), 'a': None}", {1: (2,), "a": None}, {1: [2], "a": None}),
    ("{(1, 2): 3}.popitem()", ((1, 2), 3), [[1, 2], 3]),
    ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, {"a": 2, "b": 1}),
    ("__import__('fractions').Fraction(1, 3)", Fraction(1, 3), Fraction(1, 3)),
    ("__import__('decimal').Decimal('0.10')", Decimal("0.10"), Decimal("0.10")),
    ("__import__('enum').IntEnum('E', 'a b').b", 2, 2),
    ("__import__('numpy').int64(5)", 5, 5),
    ("__import__('numpy').float64(0.5)", 0.5, 0.5),
    ("[__import__('numpy').bool_(True)]", [True], [True]),
    ("__import__('numpy').array([[1, 2], [3, 4]])", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
]
# Equal to nothing.
OTHERS = [
    "{1, 2}",
    "object()",
    "iter([1])",
    "__import__('collections').deque([1])",
    "range(3)",
    "b'x'",
    "1j",
    "2 ** 2_000_000",
    "type('Yes', (), {'__eq__': lambda self, other: True})()",
    "(lambda: (x := [], x.append(x), x)[2])()",
]


@pytest.fixture(scope="module")
def encoded() -> dict[str, str]:
    """What the encoder makes of every expression, in a process of its own."""
    expressions = [case[0] for case in CASES] + OTHERS
    program = ENCODER + "\nimport json\n" + "".join(f"print(json.dumps(_encode({text})))\n" for text in expressions)
    lines = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(expressions, lines, strict=True))


@pytest.mark.parametrize(("expression", "kept", "plain"), CASES, ids=[case[0] for case in CASES])
def test_round_trip(encoded, expression, kept, plain):
    for wanted, is_plain in ((kept, False), (plain, True)):
        value = decode(encoded[expression].encode(), plain=is_plain)
        assert value == wanted
        assert type(value) is type(wanted) or isinstance(value, Array)
        assert repr(value) == repr(wanted)


@pytest.mark.parametrize("expression", OTHERS)
def test_what_no_json_can_equal_equals_nothing(encoded, expression):
    value = decode(encoded[expression].encode(), plain=True)
    for expected in (None, True, 0, 1, "", [], [1, 2], [[]]):
        assert (value == expected) is False


def test_lone_surrogates_do_not_end_the_process(encoded):
    line = subprocess.run(
        [sys.executable, "-c", ENCODER + "\nimport json\nprint(json.dumps(_encode('\\ud800')))"], capture_output=True, text=True, check=True
    ).stdout
    assert decode(line.encode(), plain=True) != "\ud800"


def test_an_array_keeps_its_size(encoded):
    value = decode(encoded["__import__('numpy').array([[1, 2], [3, 4]])"].encode(), plain=False)
    assert isinstance(value, Array)
    assert value.size == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "NaN",
        "[" * 400,
        '{"int": "xyz"}',
        '{"int": 5}',
        '{"fraction": ["0x1", "0x0"]}',
        '{"decimal": "abc"}',
        '{"tuple": 5}',
        '{"dict": [[{"dict": []}, 1]]}',
        '{"dict": [[1, 2, 3]]}',
        '{"array": [1]}',
        '{"text": "zz"}',
        '{"tuple": [], "dict": []}',
        "{}",
        '{"float": "no"}',
    ],
)
def test_what_a_candidate_wrote_in_the_encoders_place_is_refused(text):
    with pytest.raises(UntrustedInputError):
        decode(text.encode(), plain=True)


def test_an_unknown_kind_equals_nothing():
    assert decode_value({"made up": 1}, plain=True) != 1
    assert json.loads('{"other": "x"}') != decode_value({"other": "x"}, plain=True)
