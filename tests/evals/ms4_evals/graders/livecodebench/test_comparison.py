"""LiveCodeBench's rules of equality. The verdicts of ``PRINTED`` are those of its own grader, run on programs that print the first text."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from ms4_evals.graders.livecodebench.comparison import Difference, UncomparableError, printed_difference, same_value, stripped_lines

# printed, expected, equal
PRINTED = [
    ("1\n", "1", True),
    ("  1  \n\n", "1", True),
    ("1\n2\n", "1\n2", True),
    ("1\r\n2\r\n", "1\n2", True),
    ("1  \n  2", "1\n2", True),
    ("1 2", "1  2", True),
    ("a b", "a  b", False),
    ("1\n\n2", "1\n2", False),
    ("1", "1\n2", False),
    ("", "", True),
    ("", "1", False),
    ("\n\n", "", True),
    ("1.0", "1", True),
    ("1e3", "1000", True),
    ("0.30000000000000004", "0.3", False),
    ("0.1", "0.10", True),
    ("50000000000000000", "50000000000000001", False),
    ("+1", "1", True),
    ("-0", "0", True),
    ("007", "7", True),
    ("1_000", "1000", True),
    ("\u0661", "1", True),
    ("YES", "Yes", False),
    ("Infinity", "inf", True),
    ("nan", "nan", True),
    ("nan", "NaN", False),
    ("1 x", "1.0 x", False),
    ("1 2 3", "1 2", False),
    ("0x10", "16", False),
    ("1,000", "1000", False),
    ("1/2", "0.5", False),
    ("a\u00a0", "a", True),
    ("1\x0b2", "1 2", True),
    ("1\x1c2", "1 2", True),
    ("a\x00", "a", False),
    ("1\x0c\n2", "1\n2", True),
]


@pytest.mark.parametrize(("got", "expected", "is_equal"), PRINTED, ids=[repr(case[:2]) for case in PRINTED])
def test_printed(got, expected, is_equal):
    assert (printed_difference(got, expected) is None) == is_equal


def test_the_place_of_a_difference():
    assert printed_difference("1\n2\n4", "1\n2\n3\n") == Difference("line", 2, "4", "3")
    assert printed_difference("1", "1\n2") == Difference("lines", 0, "1", "2")


def test_a_signalling_nan_cannot_be_compared():
    with pytest.raises(UncomparableError):
        printed_difference("sNaN", "1")
    with pytest.raises(UncomparableError):
        same_value([Decimal("sNaN")], [1])


def test_numbers_with_huge_exponents_cost_nothing():
    start = time.process_time()
    assert printed_difference("1e999999999", "1") is not None
    assert printed_difference("9" * 1_000_000, "8" * 1_000_000) is not None
    # Far more than either takes (some 0.02 s), far less than writing a number of a billion digits would.
    assert time.process_time() - start < 2


def test_an_empty_text_is_one_empty_line():
    assert stripped_lines(" \n ") == [""]


@pytest.mark.parametrize(
    ("got", "expected", "is_equal"),
    [
        (5, 5.0, True),
        (True, 1, True),
        (1, True, True),
        (0.1 + 0.2, 0.3, False),
        ([1, 2], [1, 2], True),
        ((1, 2), [1, 2], False),
        ("1", 1, False),
        (None, None, True),
        (float("nan"), float("nan"), False),
        (Decimal(5), 5, True),
    ],
)
def test_values_are_equal_when_python_says_so(got, expected, is_equal):
    assert same_value(got, expected) == is_equal


@pytest.mark.parametrize("got", ["1\n2\n3", "1", "1\n2\n2", "1\n2\n\n3"])
def test_more_lines_or_fewer_are_a_difference_though_all_others_agree(got):
    difference = printed_difference(got, "1\n2")
    assert difference is not None
    assert difference.kind == "lines"
