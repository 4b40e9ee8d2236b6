"""From the ``tasks:`` section of a configuration to tasks, and the list that ``ms4 eval --list`` prints.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/test_registry.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks.aime import aime_tasks
from ms4_evals.tasks.arithmetic import KINDS, find_kind, make_problems
from ms4_evals.tasks.base import QuestionTask, Task, TaskProblem
from ms4_train.config.evaluation import AimeTask, ArithmeticTask
from ms4_train.errors import EvaluationError


def build_tasks(sections: Sequence[AimeTask | ArithmeticTask]) -> list[Task]:
    """The tasks that a configuration names.

    Raises:
        EvaluationError: a task whose data cannot be used, or two tasks of the same name.
    """
    tasks: list[Task] = []
    for section in sections:
        tasks += aime_tasks(section) if isinstance(section, AimeTask) else [_arithmetic_task(section)]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationError(f"the task {name} is named twice.", key="tasks", fix="keep one of the two.")
    return tasks


def describe_tasks() -> list[tuple[str, str]]:
    """Every task that a configuration can name, with one sentence each."""
    rows = [("aime", "AIME 2024, 2025 or 2026: 30 competition problems a year, integer answers; from local files or the hub")]
    rows += [(f"arithmetic, kind {kind.name}", f"generated: {kind.description}") for kind in KINDS.values()]
    return rows


def _arithmetic_task(section: ArithmeticTask) -> QuestionTask:
    kind = find_kind(section.kind)
    name = f"arithmetic_{kind.name}_{section.steps}"
    drawn = make_problems(kind.name, section.problems, section.seed, "heldout", steps=section.steps)
    problems = tuple(
        TaskProblem(f"{name}/{index:04d}", problem.question, str(problem.answer)) for index, problem in enumerate(drawn, start=1)
    )
    return QuestionTask(
        name=name,
        title=f"Arithmetic, {kind.name}, {section.steps} steps, {len(problems)} held-out problems",
        samples=section.samples,
        problems=problems,
        grader=IntegerGrader(),
    )
