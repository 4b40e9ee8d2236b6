r"""Finding the last balanced box."""

import time

import pytest

from ms4_evals.graders.boxed import last_boxed, unwrap_boxes


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"\boxed{70}", "70"),
        (r"\fbox{70}", "70"),
        (r"\boxed {70}", "70"),
        (r"so $\boxed{1}$, no: $\boxed{2}$ it is", "2"),
        (r"\boxed{1} then \fbox{2}", "2"),
        (r"\boxed{\text{70}}", r"\text{70}"),
        (r"\boxed{{70^\circ}}", r"{70^\circ}"),
        (r"\boxed{\frac{140}{2}}", r"\frac{140}{2}"),
        (r"\boxed{\boxed{70}}", r"\boxed{70}"),
        (r"\boxed{x=\boxed{70}} done", r"x=\boxed{70}"),
        (r"\boxed{\{70\}}", r"\{70\}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{ \boxed{70}", "70"),
        (r"{ \boxed{70}", "70"),
        (r"} \boxed{70} }", "70"),
        (r"\framebox{70}", "70"),
        (r"\boxed{1} \boxed{}", "1"),
        ("\\boxed{1} \\boxed{ \n }", "1"),
        (r"\boxed{{}}", "{}"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        ("\\boxed{7\n0}", "7\n0"),
        (r"\boxed{70", None),
        (r"\boxed 70", "70"),
        (r"\boxed70", "70"),
        (r"\boxed -7 then", "-7"),
        (r"\boxed 1{,}234.", "1{,}234"),
        (r"\boxed{1} or \boxed 70", "70"),
        (r"\boxed{\boxed 70}", r"\boxed 70"),
        # The number goes on in a way that is not guessed at.
        (r"\boxed 70.5", None),
        (r"\boxed 140/2", None),
        (r"\boxed 1,23", None),
        (r"\boxed 7^2", None),
        (r"\boxed x", None),
        ("boxed 70", None),
        ("boxed{70}", "70"),
        ("so boxed {70}", "70"),
        ("unboxed{70}", None),
        (r"\unboxed{70}", None),
        ("the answer is 70", None),
        ("", None),
    ],
)
def test_last_boxed(text, inner):
    assert last_boxed(text) == inner


def test_nested_boxes_are_unwrapped():
    assert unwrap_boxes(r"x=\boxed{70}") == "x={70}"
    assert unwrap_boxes(r"\fbox {1} boxed{2} \boxed 3 unboxed{4} \framebox{5}") == "{1} {2} 3 unboxed{4} {5}"


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "}", r"\boxed{1}", "\\", r"\boxed", r"\boxed{ ", "boxed ", r"\boxed 1", "1", ",111", " "]
)
def test_hostile_texts_take_linear_time(piece):
    """A megabyte of the piece; a search that restarts at every opening brace would take hours."""
    start = time.process_time()
    last_boxed(piece * (1_000_000 // len(piece)))
    last_boxed(r"\boxed " + piece * (1_000_000 // len(piece)) + "}" * 100_000)
    assert time.process_time() - start < 5
