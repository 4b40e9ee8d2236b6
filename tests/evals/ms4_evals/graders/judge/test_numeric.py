"""The deterministic check of quantities: which official answers it takes on, and what it says of answers."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lcr_data import real_questions

from ms4_evals.graders.judge.numeric import numeric_opinion, quantities, read_gold

THOUSANDS = "What is the difference? Report your answer in thousands of dollars"

# (answer, official answer, question, opinion)
CASES = [
    ("5597456", "5597456", "", "correct"),
    ("5,597,456", "5597456", "", "correct"),
    ("$5,597,456 thousand", "5597456", THOUSANDS, "correct"),
    ("The difference is **$5,597,456** (in thousands).", "5597456", THOUSANDS, "correct"),
    ("$5,597,456,000", "5597456", THOUSANDS, "correct"),
    ("$5,597,456,000", "5597456", "", "wrong"),
    ("$5.6 billion", "5597456", THOUSANDS, "wrong"),
    ("5{,}597{,}456", "5597456", "", "correct"),
    (r"\boxed{5{,}597{,}456}", "5597456", "", "correct"),
    (r"First \boxed{1}, then \boxed{5\,597\,456}", "5597456", "", "correct"),
    (r"\boxed{5597456} or rather \boxed{91366}", "5597456", "", "wrong"),
    ("5597455", "5597456", "", "wrong"),
    ("1.53%", "0.0153", "", "correct"),
    ("1.53 %", "0.0153", "", "correct"),
    (r"1.53\%", "0.0153", "", "correct"),
    ("1.53 percent", "0.0153", "", "correct"),
    ("1.53 per cent", "0.0153", "", "correct"),
    ("1.53 percentage points", "0.0153", "", "correct"),
    ("0.0153", "0.0153", "", "correct"),
    (".0153", "0.0153", "", "correct"),
    ("1.5%", "0.0153", "", "wrong"),
    ("1.53", "0.0153", "", "wrong"),
    ("-1.53%", "0.0153", "", "wrong"),
    ("16%", "16%", "", "correct"),
    ("0.16", "16%", "", "correct"),
    ("$16.4 million", "16400000", "", "correct"),
    ("A$16.4M", "16400000", "", "correct"),
    ("16.4 million dollars a year", "16400000", "", "correct"),
    ("$16,400,000", "$16,400,000", "", "correct"),
    ("$55.2m", "$55.2 million", "", "correct"),
    ("7.1 billion", "7.1 billion", "", "correct"),
    ("7.1bn", "7.1 billion", "", "correct"),
    ("7100 million", "7.1 billion", "", "correct"),
    ("Half, that is 50 %.", "50%.", "", "correct"),
    ("Six analysts stayed.", "6", "", "correct"),
    ("twenty-five", "25", "", "correct"),
    ("There were 6.", "6", "", "correct"),
    ("6.2x", "6.2", "", "correct"),
    ("6.2 times", "6.2", "", "correct"),
    ("In Q4 2023 there were 9, in Q3 6.\n\n**Answer: 6**", "6", "", "correct"),
    ("In Q4 2023 there were 9, in Q3 6.\n\n**Answer:** 9", "6", "", "wrong"),
    ("The final answer is: **9** (of 12)", "9", "", "correct"),
    ("I count **9** calls; so **9** it is, of 12.", "9", "", "correct"),
    ("Between 5 and 6.", "6", "", "failed"),
    ("5\u20136", "6", "", "failed"),
    ("Either 5 or 6 or 7", "8", "", "wrong"),
    ("I do not know.", "6", "", "wrong"),
    ("June 2024", "45444", "", "wrong"),
    ("4Q23, FY22 and Q1", "4", "", "wrong"),
    ("Nasdaq", "Nasdaq", "", None),
    ("8.57%", "8.57%, increase not decrease", "", None),
    ("-76%, -42%", "-76%, -42%", "", None),
    ("148 companies", "148 companies.", "", None),
    ("60.8", "60.8 acres", "", None),
    ("5", "5 or 6", "", None),
]


@pytest.mark.parametrize(("answer", "gold", "question", "opinion"), CASES)
def test_opinions(answer: str, gold: str, question: str, opinion: str | None) -> None:
    assert numeric_opinion(answer, gold, question) == opinion


def test_29_of_the_real_official_answers_are_quantities() -> None:
    golds = [question for question in real_questions() if read_gold(question.answer, question.question) is not None]
    bare = [question for question in golds if question.answer.replace(".", "", 1).isdigit()]
    assert len(bare) == 25
    assert sorted(question.answer for question in golds if question not in bare) == ["$204 million", "$55.2 million", "50%.", "7.1 billion"]


def test_every_real_quantity_agrees_with_itself_in_each_notation() -> None:
    for question in real_questions():
        values = read_gold(question.answer, question.question)
        if values is None:
            continue
        value = min(values)
        for written in (question.answer, f"The answer is {question.answer}", f"**{question.answer}**", f"{float(value) * 100:,.6f}%"):
            assert numeric_opinion(written, question.answer, question.question) == "correct", (question.number, written)
        assert numeric_opinion(f"{float(value) * 1.01 + 1:,.6f}", question.answer, question.question) == "wrong", question.number


def test_quantities_of_a_text() -> None:
    assert quantities("In Q4 2023, 1,338,724 and $105.6m or 8.57%, not FY24") == [
        2023,
        1338724,
        105_600_000,
        Fraction(857, 10_000),
    ]
    assert quantities("one of the nine") == [1, 9]
    assert quantities("version 1.2.3 and 10.0.0.1") == []


@given(st.text(max_size=200), st.text(max_size=30))
def test_any_text_gets_an_opinion(answer: str, gold: str) -> None:
    assert numeric_opinion(answer, gold) in {"correct", "wrong", "failed", None}


@pytest.mark.parametrize(
    "answer",
    [
        "1," * 50_000,
        "9" * 100_000,
        "**" * 50_000,
        "answer " * 14_000,
        r"\text{" * 20_000,
        r"\boxed{" * 14_000,
        "$ " * 50_000,
        "-" * 100_000,
    ],
)
def test_hostile_answers_cost_little(answer: str) -> None:
    begin = time.process_time()
    numeric_opinion(answer, "6")
    # Some hundredths of a second; a pattern that backtracks would need minutes.
    assert time.process_time() - begin < 2
