"""Scores by facts and by output length, counted by hand and against pandas."""

import random

import pandas as pd
import pytest
from support.made_stores import graded, made_evaluation, made_problems

from ms4_evals.statistics.breakdowns import ABSENT, OUTPUT_TOKENS, breakdowns, errata_free
from ms4_evals.statistics.scores import score


def parts_of(facts, count, verdict=lambda problem: "correct", **values):
    """Breakdowns of one sample per problem."""
    evaluation = made_evaluation(problems=made_problems("t", count, facts), samples=1)
    samples = {item.problem_id: [graded(evaluation, i, 0, verdict(i), **values)] for i, item in enumerate(evaluation.problems)}
    return breakdowns(evaluation.problems, samples, 0.95)


def test_against_pandas():
    """Random facts and verdicts of 60 problems with three samples: every count and mean as a pandas group-by has it."""
    generator = random.Random(2)
    problems = made_problems(
        "t", 60, lambda i: {"difficulty": generator.choice(["easy", "medium", "hard"]), "month": f"2024-{i % 7 + 1:02d}"}
    )
    evaluation = made_evaluation(problems=problems, samples=3)
    samples_of, rows = {}, []
    for index, problem in enumerate(problems):
        samples_of[problem.problem_id] = []
        for number in range(3):
            right, length = generator.random() < 0.5, generator.randrange(1, 5000)
            verdict = "correct" if right else "wrong"
            samples_of[problem.problem_id].append(graded(evaluation, index, number, verdict, thinking_tokens=length, answer_tokens=2))
            rows.append(dict(problem.facts) | {"problem": index, "right": right, "tokens": length + 2})
    frame = pd.DataFrame(rows)
    frame["band"] = frame["tokens"].map(lambda n: 1 << (n.bit_length() - 1))
    found = breakdowns(problems, samples_of, 0.95)
    for name, column in (("difficulty", "difficulty"), ("month", "month"), (OUTPUT_TOKENS, "band")):
        parts = {part.value if column != "band" else int(part.value.split(" to ")[0].replace(",", "")): part for part in found[name]}
        assert set(parts) == set(frame[column])
        for value, group in frame.groupby(column):
            part = parts[value]
            assert (part.problems, part.samples, part.correct) == (group["problem"].nunique(), len(group), group["right"].sum())
            assert part.score.value == pytest.approx(group.groupby("problem")["right"].mean().mean())
            assert part.mean_tokens == pytest.approx(group["tokens"].mean())
    assert [part.value for part in found["difficulty"]] == ["easy", "medium", "hard"]
    assert [part.value for part in found["month"]] == [f"2024-{month:02d}" for month in range(1, 8)]


def test_a_slice_has_the_interval_of_its_problems():
    parts = parts_of(lambda i: {"category": "a" if i < 4 else "b"}, 10, lambda i: "correct" if i in (0, 5) else "wrong")
    assert parts["category"][0].score == score([[True], [False], [False], [False]], 0.95)
    assert [part.problems for part in parts["category"]] == [4, 6]


@pytest.mark.parametrize(
    ("facts", "values"),
    [
        (
            lambda i: {"n": 1000 * i},
            ["0 to 1,999", "2,000 to 3,999", "4,000 to 5,999", "6,000 to 7,999", "8,000 to 9,999", "10,000 to 11,999", "12,000 to 13,999"],
        ),
        (lambda i: {"n": i % 3}, ["0", "1", "2"]),
        (lambda i: {"n": 7 if i else -3}, ["-3", "7"]),
        (lambda i: {"n": "x"} if i == 3 else {}, ["x", ABSENT]),
        (lambda i: {"n": ["b", "a", ""][i % 3]}, ["a", "b", ABSENT]),
    ],
    ids=["bands", "few numbers", "negative", "absent", "empty"],
)
def test_values_and_their_order(facts, values):
    assert [part.value for part in parts_of(facts, 14)["n"]] == values


def test_what_tells_no_problems_apart_is_passed_over():
    parts = parts_of(lambda i: {"same": "x", "name": f"title {i}"}, 70)
    assert parts == {}


def test_output_lengths_on_the_edges_of_bands():
    evaluation = made_evaluation(problems=1, samples=6)
    lengths = [0, 1, 2, 3, 4, 8]
    samples = [graded(evaluation, 0, i, "correct", thinking_tokens=length, answer_tokens=0) for i, length in enumerate(lengths)]
    parts = breakdowns(evaluation.problems, {evaluation.problems[0].problem_id: samples}, 0.95)[OUTPUT_TOKENS]
    assert [(part.value, part.samples) for part in parts] == [("0", 1), ("1", 1), ("2 to 3", 2), ("4 to 7", 1), ("8 to 15", 1)]


def test_errata():
    problems = made_problems("t", 3, lambda i: {"errata": ["multi-answer", "", "bad-tests"][i]})
    assert errata_free(problems) == {"t/001"}
    assert errata_free(made_problems("t", 3)) is None
