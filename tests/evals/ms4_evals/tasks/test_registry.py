"""From configuration to tasks."""

import pytest

from ms4_evals.tasks.arithmetic import KINDS, make_problems
from ms4_evals.tasks.registry import build_tasks, describe_tasks
from ms4_train.config.evaluation import ArithmeticTask
from ms4_train.errors import EvaluationError


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_tasks_ask_heldout_problems_as_training_asked_them(kind):
    (task,) = build_tasks([ArithmeticTask(task="arithmetic", kind=kind, problems=20, seed=3, steps=4, samples=2)])
    heldout = make_problems(kind, 20, 3, "heldout", steps=4)
    assert [problem.question for problem in task.problems] == [problem.question for problem in heldout]
    assert [problem.gold for problem in task.problems] == [str(problem.answer) for problem in heldout]
    assert task.messages(task.problems[0]) == [{"role": "user", "content": heldout[0].question}]
    assert task.samples == 2
    assert task.grader.grade(task.problems[0], f"\\boxed{{{heldout[0].answer}}}", is_truncated=False).verdict == "correct"


def test_the_same_task_twice_is_refused():
    section = ArithmeticTask(task="arithmetic", kind="digits", problems=3)
    with pytest.raises(EvaluationError, match="twice"):
        build_tasks([section, section])
    assert len(build_tasks([section, ArithmeticTask(task="arithmetic", kind="digits", problems=3, steps=5)])) == 2


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(EvaluationError, match="digits"):
        build_tasks([ArithmeticTask(task="arithmetic", kind="digit")])


def test_every_kind_is_described():
    described = dict(describe_tasks())
    assert "aime" in described
    assert all(f"arithmetic, kind {kind}" in described for kind in KINDS)
