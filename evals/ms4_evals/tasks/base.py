"""What a task is: problems, how each is asked, and how a final answer is graded.

A task never sees a model. Its identity is a hash of all that shapes a score on it, so that scores of different data, prompts or graders are
never put side by side. Exercise it: ``pytest tests/evals/ms4_evals/tasks/test_base.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ms4_evals.graders.base import Grader
from ms4_evals.identity import content_hash

Mode = Literal["none", "high"]
MODES: tuple[Mode, ...] = ("none", "high")

Message = dict[str, str]

_SHOWN_CHARACTERS = 8_000
"""Of the beginning and of the end of a long prompt."""


@dataclass(frozen=True)
class TaskProblem:
    """One problem of a task.

    Attributes:
        problem_id: unique over all tasks, e.g. ``aime_2025/07``.
        question: for people and judges, without instruction and documents.
        gold: the right answer as the grader of the task reads it; for code, a digest of the tests.
        facts: what scores are broken down by, e.g. difficulty, platform, month (``2024-08``), errata, category.
    """

    problem_id: str
    question: str
    gold: str
    facts: Mapping[str, str | int] = field(default_factory=dict)


class Task(Protocol):
    """A benchmark. Implementations are immutable."""

    @property
    def name(self) -> str:
        """Short and unique in a run, e.g. ``aime_2025``."""
        ...

    @property
    def title(self) -> str:
        """For people, with the size: ``AIME 2025, first 5 of 30 problems``."""
        ...

    @property
    def samples(self) -> int:
        """Answers per problem and mode."""
        ...

    @property
    def problems(self) -> tuple[TaskProblem, ...]:
        """All problems, in a fixed order."""
        ...

    @property
    def grader(self) -> Grader:
        """The grader of its answers."""
        ...

    @property
    def groups_samples(self) -> bool:
        """Whether all samples of a problem are drawn together, because prompts are long and servers keep what they have read."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know before it is run: where the data came from, how they were checked, what they need."""
        ...

    def messages(self, problem: TaskProblem) -> list[Message]:
        """The conversation that asks ``problem``."""
        ...


@dataclass(frozen=True)
class QuestionTask:
    """A task whose problems are single questions under one instruction. Satisfies ``Task``.

    Attributes:
        instruction: put before each question with an empty line between; empty for none.
    """

    name: str
    title: str
    samples: int
    problems: tuple[TaskProblem, ...]
    grader: Grader
    instruction: str = ""
    groups_samples: bool = False
    notes: tuple[str, ...] = ()

    def messages(self, problem: TaskProblem) -> list[Message]:
        """One user message: the instruction, an empty line, the question."""
        content = f"{self.instruction}\n\n{problem.question}" if self.instruction else problem.question
        return [{"role": "user", "content": content}]


def shown_prompt(messages: list[Message]) -> str:
    """A conversation for people, one message after the other under its role; a long one has its middle left out, and says so."""
    text = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)
    left_out = len(text) - 2 * _SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}\n[... {left_out:,} characters left out ...]\n{text[-_SHOWN_CHARACTERS:]}"


def prompt_id(messages: list[Message]) -> str:
    """Identity of one problem as it is asked."""
    return content_hash(["prompt", messages])


def sampling_id(sampling: Mapping[str, float | int]) -> str:
    """Identity of the sampling parameters of a mode."""
    return content_hash(["sampling", dict(sampling)])


def grading_id(grader: Grader, gold: str) -> str:
    """Identity of what turns a stored answer into a verdict; another grader or a corrected gold answer grades stored answers again."""
    return grading_of(grader.grader_id, gold)


def grading_of(grader_id: str, gold: str) -> str:
    """The same from the grader's name alone."""
    return content_hash(["grading", grader_id, gold])


def board_id(task: Task) -> str:
    """Identity of data, prompts and grader: what two scores must share to stand on one board."""
    rows = [(problem.problem_id, problem.gold, prompt_id(task.messages(problem))) for problem in task.problems]
    return board_of(task.name, task.grader.grader_id, rows)


def board_of(name: str, grader_id: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """The same from its parts, with (problem id, right answer, prompt id) of every problem in order."""
    return content_hash(["board", name, grader_id, [list(row) for row in rows]])


def column_id(task: Task, mode: Mode, sampling: Mapping[str, float | int]) -> str:
    """Identity of data, prompts, grader, mode and sampling: what two scores must share to stand in one column.

    The number of samples per problem is left out: it changes how exactly a score is known, not what is measured.
    """
    return column_of(board_id(task), mode, sampling)


def column_of(board: str, mode: Mode, sampling: Mapping[str, float | int]) -> str:
    """The same from the identity of a board."""
    return content_hash(["column", board, mode, sampling_id(sampling)])
