"""From the ``tasks:`` section of a configuration to tasks, and the list that ``ms4 eval tasks`` prints.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/test_registry.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.resources import Resources
from ms4_evals.tasks.aime import aime_tasks
from ms4_evals.tasks.arithmetic import KINDS, find_kind, make_problems
from ms4_evals.tasks.base import QuestionTask, Task, TaskProblem
from ms4_train.config.eval_tasks import AimeTask, ArithmeticTask, LcrTask, LiveCodeBenchTask
from ms4_train.config.eval_tasks import Task as TaskSection
from ms4_train.errors import EvaluationError


def build_tasks(sections: Sequence[TaskSection], resources: Resources | None = None) -> list[Task]:
    """The tasks that a configuration names.

    Args:
        sections: of the configuration.
        resources: sandbox and judge; default: none that must be closed.

    Raises:
        EvaluationError: a task whose data, sandbox or judge cannot be used, or two tasks of the same name.
    """
    resources = resources or Resources()
    tasks = [task for section in sections for task in _tasks_of(section, resources)]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationError(f"the task {name} is named twice.", key="tasks", fix="keep one of the two.")
    return tasks


def _tasks_of(section: TaskSection, resources: Resources) -> Sequence[Task]:
    if isinstance(section, AimeTask):
        return aime_tasks(section)
    if isinstance(section, ArithmeticTask):
        return [_arithmetic_task(section)]
    if isinstance(section, LiveCodeBenchTask):
        from ms4_evals.tasks.livecodebench.task import livecodebench_task

        return [livecodebench_task(section, resources.code_grader)]
    assert isinstance(section, LcrTask)
    from ms4_evals.tasks.lcr.task import lcr_task

    return [lcr_task(section, resources.judge_grader(section.version))]


def describe_tasks() -> list[tuple[str, str]]:
    """Every task that a configuration can name, with one sentence each."""
    rows = [("aime", "AIME 2024, 2025 or 2026: 30 competition problems a year, integer answers; from local files or the hub")]
    rows += [
        (
            "livecodebench",
            "LiveCodeBench code generation, releases v1 to v6: programs run in a sandbox against all tests; local files or hub",
        ),
        ("lcr", "AA-LCR 1.0 and 1.1: 100 questions over documents of 70,000 to 115,000 tokens, compared by a judge; package, files or hub"),
    ]
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
