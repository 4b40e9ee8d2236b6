r"""The integer check, over every answer form that is known to have misled a grader."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms4_evals.graders.base import MATH_VERIFY, Grade
from ms4_evals.graders.integer import IntegerGrader, read_integer
from ms4_evals.tasks.base import TaskProblem

GRADER = IntegerGrader()


def graded(answer, gold, *, is_truncated=False):
    return GRADER.grade(TaskProblem("p/1", "?", gold), answer, is_truncated=is_truncated)


# (final answer, gold, verdict). The first block is the forms named by the literature on AIME graders.
FORMS = [
    (r"\boxed{70}", "70", "correct"),
    (r"\boxed{070}", "70", "correct"),
    (r"\boxed{70.0}", "70", "correct"),
    (r"\boxed{70.}", "70", "correct"),
    (r"\boxed{70^\circ}", "70", "correct"),
    (r"\boxed{70^{\circ}}", "70", "correct"),
    (r"\boxed{{70^\circ}}", "70", "correct"),
    ("\\boxed{70\N{DEGREE SIGN}}", "70", "correct"),
    (r"\boxed{\text{70}}", "70", "correct"),
    (r"\boxed{\mathbf{70}}", "70", "correct"),
    (r"\boxed{\textbf{\text{70}}}", "70", "correct"),
    (r"\boxed{1{,}234}", "1234", "correct"),
    (r"\boxed{1,234}", "1234", "correct"),
    (r"\boxed{1\,234}", "1234", "correct"),
    (r"\boxed{12,345,678}", "12345678", "correct"),
    (r"\boxed{1{,}\!234}", "1234", "correct"),
    (r"\boxed{m+n=70}", "70", "correct"),
    (r"\boxed{m + n = 35 + 35 = 70}", "70", "correct"),
    (r"\boxed{140/2}", "70", "correct"),
    (r"\boxed{\frac{140}{2}}", "70", "correct"),
    (r"\boxed{\dfrac{-140}{-2}}", "70", "correct"),
    (r"First $\boxed{35}$. Later: $\boxed{70}$.", "70", "correct"),
    (r"First $\boxed{70}$. Later: $\boxed{35}$.", "70", "wrong"),
    (r"\boxed{70 \pmod{1000}}", "70", "correct"),
    (r"\boxed{N \equiv 70 \pmod{1000}}", "70", "correct"),
    (r"\boxed{70 (mod 1000)}", "70", "correct"),
    (r"\boxed{\boxed{70}}", "70", "correct"),
    (r"\boxed{x=\boxed{70}}", "70", "correct"),
    (r"\fbox{70}", "70", "correct"),
    (r"\boxed{70\text{ units}}", "70", "correct"),
    (r"\boxed{\text{The answer is }70}", "70", "correct"),
    (r"\boxed{ 70 }", "70", "correct"),
    (r"\boxed{\left(70\right)}", "70", "correct"),
    (r"\boxed{$70$}", "70", "correct"),
    (r"\boxed{\$70}", "70", "correct"),
    (r"\boxed{\displaystyle 70}", "70", "correct"),
    (r"\boxed{000}", "0", "correct"),
    # What readers take for a number without a second thought.
    ("\\boxed{\N{FULLWIDTH DIGIT SEVEN}\N{FULLWIDTH DIGIT ZERO}}", "70", "correct"),
    (r"\boxed{70_{10}}", "70", "correct"),
    (r"\boxed{70=m+n}", "70", "correct"),
    (r"\boxed{70 cm}", "70", "correct"),
    (r"\boxed{70\text{ cm}^2}", "70", "correct"),
    (r"\boxed{70 \text{ mod } 1000}", "70", "correct"),
    (r"\boxed{\textcolor{blue}{\underline{70}}}", "70", "correct"),
    (r"\boxed{**70**}", "70", "correct"),
    (r"\boxed 70", "70", "correct"),
    ("boxed{70}", "70", "correct"),
    (r"\boxed{70}, in \boxed{} as asked", "70", "correct"),
    ("\\boxed{\N{MINUS SIGN}70}", "70", "wrong"),
    # Several values commit to none of them, even when one of them is right.
    (r"\boxed{x=35, y=70}", "70", "wrong"),
    (r"\boxed{35, 70}", "70", "wrong"),
    (r"\boxed{35,70}", "70", "wrong"),
    (r"\boxed{35\text{ and }70}", "70", "wrong"),
    (r"\boxed{35\text{ and }700}", "35700", "wrong"),
    (r"\boxed{35 \text{ or } 70}", "70", "wrong"),
    (r"\boxed{35; 70}", "70", "wrong"),
    # Not an integer, or not the gold one.
    (r"\boxed{71}", "70", "wrong"),
    (r"\boxed{-70}", "70", "wrong"),
    (r"\boxed{70.5}", "70", "wrong"),
    (r"\boxed{141/2}", "70", "wrong"),
    (r"\boxed{70/0}", "70", "wrong"),
    (r"\boxed{70\%}", "70", "wrong"),
    (r"\boxed{7^2}", "72", "wrong"),
    ("\\boxed{7\N{SUPERSCRIPT TWO}}", "72", "wrong"),
    (r"\boxed{\sqrt{4900}}", "70", "wrong"),
    (r"\boxed{\text{none}}", "70", "wrong"),
    (r"\boxed{70x}", "70", "wrong"),
    (r"\boxed{7_{8}}", "7", "wrong"),
    (r"\boxed{7_10}", "7", "wrong"),
    (r"\boxed{7_{10}}", "710", "wrong"),
    (r"\boxed{70 xy}", "70", "wrong"),
    (r"\boxed{70cm}", "70", "wrong"),
    (r"\boxed{7**2}", "72", "wrong"),
    (r"\boxed{70\text{ hundred}}", "70", "wrong"),
    (r"\boxed{\text{at least }70}", "70", "wrong"),
    (r"\boxed{\text{not }70}", "70", "wrong"),
    (r"\boxed{a = 35 \\ b = 70}", "70", "wrong"),
    (r"\boxed{a = 35 b = 70}", "70", "wrong"),
    (r"\boxed{35 = 70}", "70", "wrong"),
    (r"\boxed{35 = 70}", "35", "wrong"),
    (r"\boxed{70\text{ }^2}", "70", "wrong"),
    # Letters in a font of mathematics are variables and functions, not units; between sides of an equation they say nothing.
    (r"\boxed{70\mathbf{x}}", "70", "wrong"),
    (r"\boxed{70\mathrm{i}}", "70", "wrong"),
    (r"\boxed{70\boldsymbol{\pi}}", "70", "wrong"),
    (r"\boxed{\operatorname{lcm} 70}", "70", "wrong"),
    (r"\boxed{\mathrm{log}\,70}", "70", "wrong"),
    (r"\boxed{70\text{k}}", "70", "wrong"),
    (r"\boxed{70\text{ \%}}", "70", "wrong"),
    (r"\boxed{70\text{ trillion}}", "70", "wrong"),
    (r"\boxed{\text{the square root of }70}", "70", "wrong"),
    (r"\boxed{\mathbf{a}\cdot\mathbf{b}=70}", "70", "correct"),
    (r"\boxed{\text{n = }70}", "70", "correct"),
    (r"\boxed{\text{The largest root is }70}", "70", "correct"),
    # A mixed number is no quotient, and a fraction among factors none either.
    (r"\boxed{1\frac{4}{2}}", "7", "wrong"),
    (r"\boxed{2\frac{140}{2}}", "1070", "wrong"),
    (r"\boxed{\frac{48}{2}4}", "2", "wrong"),
    (r"\boxed{(1)(4)/2}", "7", "wrong"),
    (r"\boxed{-\frac{140}{2}}", "-70", "correct"),
    (r"\boxed{(140)/(2)}", "70", "correct"),
    (r"\boxed{x>=70}", "70", "wrong"),
    (r"\boxed{x <= 70}", "70", "wrong"),
    # No box, no answer: nothing is fished out of prose.
    ("The answer is 70.", "70", "no-answer"),
    (r"\boxed{}", "70", "no-answer"),
    (r"\boxed{ }", "70", "no-answer"),
    (r"\boxed{70", "70", "no-answer"),
    ("", "70", "no-answer"),
]


@pytest.mark.parametrize(("answer", "gold", "verdict"), FORMS)
def test_answer_forms(answer, gold, verdict):
    assert graded(answer, gold).verdict == verdict


def test_the_thinking_is_never_graded():
    """A grader gets the final answer alone: with the box only in the thinking there is none to find."""
    thinking, answer = r"I find \boxed{70}.", "The answer follows."
    assert graded(answer, "70") == Grade("no-answer", None)
    assert graded(thinking + answer, "70").verdict == "correct", "the box itself is readable"


def test_what_the_runner_asks_of_a_grader():
    assert (GRADER.second_grader, GRADER.is_instant) == (MATH_VERIFY, True)
    assert GRADER.grader_id == "integer-box/1.1", "a change of any verdict changes the version"


def test_truncated_samples():
    assert graded("", "70", is_truncated=True) == Grade("truncated", None)
    assert graded(r"Let me box it: \boxed{7", "70", is_truncated=True).verdict == "truncated"
    assert graded(r"\boxed{70} Let me also explain that", "70", is_truncated=True).verdict == "correct"


def test_what_was_read_is_reported():
    assert graded(r"\boxed{m+n=070}", "7") == Grade("wrong", "70")
    assert graded(r"\boxed{x=35, y=70}", "70").extracted == "x=35, y=70"


@pytest.mark.parametrize("inner", ["9" * 5000, "9" * 41, "{" * 300, "\\text{" * 60 + "7" + "}" * 60, "(" * 200 + "7" + ")" * 200])
def test_hostile_boxes_end_quickly(inner):
    read_integer(inner)


@given(st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_every_common_way_to_write_an_integer_is_read_back(value):
    grouped = f"{value:,}"
    forms = [
        str(value),
        f"{value:012d}",
        grouped,
        grouped.replace(",", "{,}"),
        f"{value}.00",
        f"\\text{{{value}}}",
        f"n={value}",
        f"{2 * value}/2",
    ]
    assert [read_integer(form) for form in forms] == [value] * len(forms)


@given(st.text(alphabet="0123456789{},.=-+/\\ ()xt$^", max_size=30))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_the_grader_raise(inner):
    result = read_integer(inner)
    assert result is None or isinstance(result, int)
