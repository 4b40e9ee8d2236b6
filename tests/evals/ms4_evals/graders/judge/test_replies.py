"""What counts as a verdict: the bare word, or JSON that holds it, and nothing that merely begins with it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_evals.graders.judge.replies import MAX_REPLY_CHARACTERS, read_verdict

WORDS = {
    "CORRECT": "correct",
    "INCORRECT": "wrong",
    "correct": "correct",
    "incorrect": "wrong",
    "INCORRECT.": "wrong",
    " CORRECT \n": "correct",
    "**CORRECT**": "correct",
    "**INCORRECT.**": "wrong",
    '"CORRECT"': "correct",
    "`incorrect`": "wrong",
    "\u201cCORRECT\u201d": "correct",
    "CORRECT!": "correct",
}
NO_WORDS = [
    "",
    " ",
    "CORRECTLY",
    "NOT CORRECT",
    "IN CORRECT",
    "CORRECT or INCORRECT",
    "CORRECT\nINCORRECT",
    "CORRECT. The candidate names the company.",
    "The answer is CORRECT",
    "INCORRECT, since the official answer is 5",
    "CORRECT?",
    "yes",
    "1",
    "CORRECT" * 2,
    '{"verdict": "CORRECT"}',
    "<think>hm</think>CORRECT",
]


@pytest.mark.parametrize(("reply", "verdict"), WORDS.items())
def test_the_bare_word_is_a_verdict_of_1_0(reply: str, verdict: str) -> None:
    assert read_verdict("1.0", reply) == verdict


@pytest.mark.parametrize("reply", NO_WORDS)
def test_everything_else_is_none(reply: str) -> None:
    assert read_verdict("1.0", reply) is None


def test_the_traps_catch_looser_readings() -> None:
    """A negative control: beginning with the word, or holding it, misreads some of these."""
    assert any(reply.startswith("CORRECT") for reply in NO_WORDS)
    assert any("CORRECT" in reply for reply, verdict in WORDS.items() if verdict == "wrong")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"verdict": "CORRECT"}', "correct"),
        ('{"verdict":"INCORRECT"}', "wrong"),
        ('\n{"verdict": "incorrect."}\n', "wrong"),
        ('```json\n{"verdict": "CORRECT"}\n```', "correct"),
        ('```\n{"verdict": "INCORRECT"}\n```\n', "wrong"),
        ('{"reason": "The values agree: INCORRECT would be wrong.", "verdict": "CORRECT"}', "correct"),
        ("CORRECT", None),
        ('"CORRECT"', None),
        ('["CORRECT"]', None),
        ('{"verdict": true}', None),
        ('{"verdict": null}', None),
        ('{"verdict": ["CORRECT"]}', None),
        ('{"Verdict": "CORRECT"}', None),
        ('{"verdict": "CORRECT", "verdict": "INCORRECT"}', None),
        ('{"verdict": "NOT CORRECT"}', None),
        ('{"verdict": "CORRECT"', None),
        ('{"verdict": "CORRECT"} {"verdict": "CORRECT"}', None),
        ('Here it is: {"verdict": "CORRECT"}', None),
        ('{"a": ' * 200 + "1" + "}" * 200, None),
        ("", None),
    ],
)
def test_json_is_a_verdict_of_1_1(reply: str, verdict: str | None) -> None:
    assert read_verdict("1.1", reply) == verdict


def test_endless_replies_are_none() -> None:
    assert read_verdict("1.0", " " * MAX_REPLY_CHARACTERS + "CORRECT") is None
    assert read_verdict("1.1", '{"verdict": "CORRECT", "reason": "' + "x" * MAX_REPLY_CHARACTERS + '"}') is None


@given(st.text(max_size=300), st.sampled_from(["1.0", "1.1"]))
def test_no_text_is_read_as_right_without_the_word(reply: str, version: str) -> None:
    verdict = read_verdict(version, reply)  # type: ignore[arg-type]
    assert verdict is None or "correct" in reply.lower()


def test_endless_space_is_read_quickly() -> None:
    """Shared out between two repetitions in every way, it took 200 million steps; now it takes thousands."""
    begun = time.process_time()
    assert read_verdict("1.0", "CORRECT" + " " * (MAX_REPLY_CHARACTERS - 10) + "x") is None
    assert time.process_time() - begun < 0.2
