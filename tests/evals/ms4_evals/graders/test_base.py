"""What every grader has in common: it says who it is, who seconds it, and whether it takes its time."""

import dataclasses

import pytest
from support.sandboxes import sandbox_or_skip

from ms4_evals.graders.base import MATH_VERIFY, VERDICTS, Grade
from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.graders.judge.grader import JudgeGrader
from ms4_evals.graders.livecodebench.grader import LiveCodeBenchGrader
from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.tasks.base import TaskProblem


class Tests:
    def problem(self, problem_id):
        return CodeProblem(problem_id, None, (CodeTest("", "70\n"),))


@pytest.fixture(scope="module")
def graders():
    def never(request):
        raise AssertionError("an answer that is empty needs no judge")

    with sandbox_or_skip() as sandbox, LiveCodeBenchGrader(Tests(), sandbox) as code:
        yield [IntegerGrader(), JudgeGrader("1.0", never, "judge"), code]


def test_they_are_told_apart_and_name_a_version(graders):
    names = [grader.grader_id for grader in graders]
    assert len(set(names)) == len(names)
    assert all("/" in name for name in names)
    assert [grader.second_grader == MATH_VERIFY for grader in graders] == [True, False, False]
    assert [grader.is_instant for grader in graders] == [True, False, False]


@pytest.mark.parametrize(("is_truncated", "verdict"), [(False, "no-answer"), (True, "truncated")])
@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_never_wrong_or_right(graders, answer, is_truncated, verdict):
    for grader in graders:
        grade = grader.grade(TaskProblem("p", "q", "70"), answer, is_truncated=is_truncated)
        assert (grade.verdict, grade.extracted or None) == (verdict, None)


def test_a_grade_cannot_be_changed():
    grade = Grade("wrong", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grade.verdict = "correct"
    assert grade.verdict in VERDICTS
