"""The LiveCodeBench task, from its section of a configuration.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_task.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.graders.base import Grader
from ms4_evals.graders.livecodebench.problem import TestSource
from ms4_evals.tasks.base import Message, Task, TaskProblem
from ms4_evals.tasks.livecodebench.errata import erratum_of
from ms4_evals.tasks.livecodebench.files import load_rows
from ms4_evals.tasks.livecodebench.prompts import Style, build_messages
from ms4_evals.tasks.livecodebench.releases import HUB_DATASET, HUB_REVISION, Window, release_size, window_of
from ms4_evals.tasks.livecodebench.rows import Row
from ms4_evals.tasks.livecodebench.source import StoredTests, digest_of_tests
from ms4_train.config.eval_tasks import LiveCodeBenchTask
from ms4_train.errors import EvaluationError

_SHOWN_NAMES = 5


@dataclass(frozen=True)
class CodeTask:
    """A selection of LiveCodeBench under one prompt. Satisfies ``Task``.

    Attributes:
        style: of the prompt.
        questions: problem id -> statement and starter code.
        groups_samples: True, so that a problem's tests are decoded once for all its samples.
    """

    name: str
    title: str
    samples: int
    problems: tuple[TaskProblem, ...]
    grader: Grader
    style: Style
    questions: Mapping[str, tuple[str, str]]
    groups_samples: bool = True
    notes: tuple[str, ...] = ()

    def messages(self, problem: TaskProblem) -> list[Message]:
        """The benchmark's prompt for the problem."""
        return build_messages(self.style, *self.questions[problem.problem_id])


def livecodebench_task(section: LiveCodeBenchTask, grader_factory: Callable[[TestSource], Grader]) -> Task:
    """The task that a section describes.

    Args:
        section: of a configuration.
        grader_factory: makes the grader over the tests of the selected problems.

    Raises:
        EvaluationError: data that cannot be used, or a selection that leaves no problem.
        MissingDependencyError: the hub cannot be reached.
    """
    release = section.effective_release
    window = window_of(section.window, section.start_date, section.end_date)
    path = None if section.path is None else Path(section.path)
    selected = [row for row in load_rows(release, path) if _is_selected(row, section, window)]
    if not selected:
        raise EvaluationError(
            "no problem is left by window, difficulties and platforms.",
            file=section.path,
            key="tasks",
            fix="widen them, or check that the data holds those days.",
        )
    kept = selected[: section.limit]
    tests = StoredTests(kept)
    # The prompt is part of the id: answers are stored and seeded by it, and one run may ask the same problem in both ways.
    prefix = "livecodebench" if section.prompt == "official" else f"livecodebench_{section.prompt}"
    problems = tuple(_problem(prefix, row) for row in kept)
    return CodeTask(
        name=_name(prefix, section, window),
        title=_title(section, window, len(selected), len(kept)),
        samples=section.samples,
        problems=problems,
        grader=grader_factory(tests),
        style=section.prompt,
        questions={problem.problem_id: (row.statement, row.starter_code) for problem, row in zip(problems, kept, strict=True)},
        notes=(*_notes(path, problems), *_untested_notes(tests)),
    )


def _is_selected(row: Row, section: LiveCodeBenchTask, window: Window | None) -> bool:
    return (
        (window is None or window.holds(row.day))
        and (section.difficulties is None or row.difficulty in section.difficulties)
        and (section.platforms is None or row.platform in section.platforms)
    )


def _problem(prefix: str, row: Row) -> TaskProblem:
    facts: dict[str, str | int] = {"difficulty": row.difficulty, "platform": row.platform, "month": f"{row.day:%Y-%m}"}
    if (erratum := erratum_of(row.question_id, row.title)) is not None:
        facts["errata"] = erratum
    return TaskProblem(f"{prefix}/{row.question_id}", f"{row.title}\n\n{row.statement}", digest_of_tests(row), facts)


def _notes(path: Path | None, problems: tuple[TaskProblem, ...]) -> tuple[str, ...]:
    if path is None:
        data = f"data: {HUB_DATASET} on the hub at {HUB_REVISION[:12]}, the SHA-256 of every file checked"
    else:
        data = f"data: {path}, not compared with the published files"
    flagged = sum("errata" in problem.facts for problem in problems)
    errata = f"{flagged} of {len(problems)} problems are known to be graded wrongly (errata); reports give scores without them too"
    return (data, errata) if flagged else (data,)


def _untested_notes(tests: StoredTests) -> tuple[str, ...]:
    """Said before the first answer is paid for, because such a problem keeps the task without a score."""
    names = tests.untested()
    if not names:
        return ()
    shown = ", ".join(names[:_SHOWN_NAMES]) + (" ..." if len(names) > _SHOWN_NAMES else "")
    return (f"warning: {len(names)} problems have no tests, so they cannot be graded and there will be no score; drop their rows: {shown}",)


def _filters(section: LiveCodeBenchTask) -> list[str]:
    """Difficulties and platforms, in a fixed order, where not all are taken."""
    wanted = [*(section.difficulties or ()), *(section.platforms or ())]
    return [word for word in ("easy", "medium", "hard", "leetcode", "atcoder", "codeforces") if word in wanted]


def _name(prefix: str, section: LiveCodeBenchTask, window: Window | None) -> str:
    return "_".join([prefix, section.effective_release, *([window.name] if window else []), *_filters(section)])


def _title(section: LiveCodeBenchTask, window: Window | None, selected: int, kept: int) -> str:
    """Release, window and what else was chosen, with the number of problems, and with the published number where that is another."""
    release = section.effective_release
    parts = [f"LiveCodeBench {release}"]
    if window is not None:
        days = [f"from {window.first}"] * (window.first is not None) + [f"to {window.last}"] * (window.last is not None)
        label = f"window {window.name}, " if section.window else ""
        parts.append(label + " ".join(days))
    filters = _filters(section)
    if filters:
        parts.append(" and ".join(filters))
    if section.prompt != "official":
        parts.append(f"{section.prompt} prompt")
    published = (window.problems if window is not None else release_size(release)) if not filters else None
    size = f"{selected} problems" if published in {None, selected} else f"{selected} of {published} problems"
    parts.append(size if kept == selected else f"first {kept} of {size}")
    return ", ".join(parts)
