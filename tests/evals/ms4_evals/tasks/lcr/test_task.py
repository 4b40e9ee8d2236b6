"""The task: what is asked, in which order, under which identity."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.lcr_data import ANSWERS_1_1, real_questions, require_package, small_questions, write_hub_copy

from ms4_evals.graders.base import Grade
from ms4_evals.tasks.base import TaskProblem, board_id, prompt_id
from ms4_evals.tasks.lcr import task as module
from ms4_evals.tasks.lcr.task import lcr_task
from ms4_evals.tasks.lcr.tokens import TokenCheck
from ms4_train.config.eval_tasks import LcrTask
from ms4_train.errors import EvaluationError


@dataclass(frozen=True)
class _Grader:
    grader_id: str = "judge/1"
    second_grader: str = ""
    is_instant: bool = False

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        return Grade("correct" if answer == problem.gold else "wrong", answer)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A made-up copy of the data, whose prompts are too short for the published counts."""
    monkeypatch.setattr(module, "check_tokens", lambda questions: TokenCheck("none", False, len(list(questions)), 0))
    return str(write_hub_copy(tmp_path, small_questions()))


def _section(**values: object) -> LcrTask:
    return LcrTask.model_validate({"task": "lcr", **values})


def test_a_real_question_is_asked_over_its_documents() -> None:
    require_package()
    task = lcr_task(_section(questions=[6, 21]), _Grader())
    assert (task.name, task.samples, task.groups_samples) == ("lcr_1.0", 3, True)
    assert task.title == "AA-LCR 1.0, 2 chosen of 100 questions"
    first, second = task.problems
    assert (first.problem_id, first.gold) == ("lcr_1.0/006", "5597456")
    assert first.question.startswith("What is the difference in total stockholders' equity")
    assert first.facts == {"category": "Company_Documents", "document_set": "co_dc_2Q23", "documents": 3, "input_tokens": 71_709}
    assert second.facts["errata"] == "answer-corrected"
    (message,) = task.messages(first)
    assert message["role"] == "user"
    assert message["content"].count("BEGIN DOCUMENT ") == 3
    assert message["content"].endswith(f"START QUESTION\n\n{first.question}\n\nEND QUESTION\n")
    assert len(message["content"]) > 240_000
    assert task.token_check.prompts == 2
    assert task.notes[0].endswith("1 garbled question texts mended")
    assert task.notes[1].startswith("2 prompts ")
    assert f"the longest has {task.token_check.longest:,} tokens" in task.notes[1]


def test_documents_are_held_once() -> None:
    task = lcr_task(_section(questions=[6, 7, 8, 9]), _Grader())
    assert len({id(question.documents) for question in task.questions.values()}) == 1
    held = sum(sys.getsizeof(text) for text in next(iter(task.questions.values())).documents)
    assert held < 2 * len(task.messages(task.problems[0])[0]["content"])


def test_selection(small: str) -> None:
    def numbers(**values: object) -> tuple[list[str], str]:
        task = lcr_task(_section(path=small, **values), _Grader())
        return [problem.problem_id[-3:] for problem in task.problems], task.title

    everything, title = numbers()
    assert len(everything) == 100
    assert title == "AA-LCR 1.0"
    assert numbers(limit=2) == (["001", "002"], "AA-LCR 1.0, first 2 of 100 questions")
    assert numbers(questions=[90, 6, 6]) == (["006", "090"], "AA-LCR 1.0, 2 chosen of 100 questions")
    assert numbers(questions=[6, 90], limit=1) == (["006"], "AA-LCR 1.0, 2 chosen of 100 questions, first 1 of 2 questions")
    with pytest.raises(EvaluationError, match="no question 101"):
        numbers(questions=[1, 101])
    with pytest.raises(EvaluationError, match="no question is named"):
        numbers(questions=[])


def test_versions_differ_in_identity(small: str, tmp_path: Path) -> None:
    new = str(write_hub_copy(tmp_path / "new", small_questions(), answers=ANSWERS_1_1))
    old_task = lcr_task(_section(path=small), _Grader())
    new_task = lcr_task(_section(path=new, version="1.1"), _Grader())
    assert [problem.problem_id[:8] for problem in (old_task.problems[0], new_task.problems[0])] == ["lcr_1.0/", "lcr_1.1/"]
    # 1.1 asks the same questions of the same documents.
    assert [prompt_id(old_task.messages(problem)) for problem in old_task.problems] == [
        prompt_id(new_task.messages(problem)) for problem in new_task.problems
    ]
    assert board_id(old_task) != board_id(new_task)
    assert sum("errata" in problem.facts for problem in old_task.problems) == 16
    assert not any("errata" in problem.facts for problem in new_task.problems)


def test_identity_covers_documents_and_their_order(small: str) -> None:
    board = board_id(lcr_task(_section(path=small), _Grader()))
    assert board == board_id(lcr_task(_section(path=small), _Grader()))
    table = Path(small) / "AA-LCR_Dataset.csv"
    text = table.read_text(encoding="utf-8")
    pair = ("document-1.txt;document-2.txt;document-3.txt;document-4.txt;document-5.txt,", "document-2.txt;document-1.txt;document-3.txt;")
    assert pair[0] in text
    table.write_text(text.replace(pair[0], pair[1] + "document-4.txt;document-5.txt,"), encoding="utf-8")
    assert board_id(lcr_task(_section(path=small), _Grader())) != board


def test_the_packages_prompts_have_the_identity_of_the_hubs(tmp_path: Path) -> None:
    """Mended questions are asked as the hub's pinned table has them, so prompts of both sources carry one hash."""
    from_package = lcr_task(_section(questions=[21]), _Grader())
    hub = str(write_hub_copy(tmp_path, real_questions()))
    from_hub = lcr_task(_section(questions=[21], path=hub), _Grader())
    assert board_id(from_package) == board_id(from_hub)


def test_documents_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    folder = str(write_hub_copy(tmp_path, small_questions()))
    with pytest.raises(EvaluationError, match="the published documents give"):
        lcr_task(_section(path=folder), _Grader())
