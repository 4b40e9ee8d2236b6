r"""AIME: 30 problems a year whose answers are integers from 0 to 999.

The instruction is MathArena's (eth-sri/matharena, configs/competitions/aime/aime_2026.yaml, commit 63f9e59), which puts it before the
problem with an empty line between (src/matharena/runner.py); it is quoted exactly because scores depend on it.

Problems come from local JSON lines (``{"problem": ..., "answer": 70}``, or ``{"prompt": ..., "answer": 70}`` as several public collections
have it, whose own closing instruction is taken off), or from the Hugging Face hub.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/test_aime.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks.base import QuestionTask, TaskProblem
from ms4_train.config.evaluation import AimeTask
from ms4_train.errors import EvaluationError, MissingDependencyError, UntrustedInputError
from ms4_train.untrusted import iter_json_lines

INSTRUCTION = "Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and 999 inclusive."
PROBLEMS_PER_YEAR = 30
MAX_PROBLEM_CHARACTERS = 20_000

# SHA-256 of the sorted answers with commas between: collections order and word the problems differently, and answers they share.
_ANSWERS = {
    2024: "742a564fce4a6b58bfe38bccf90063d821fd58862dd482a38433516725030592",
    2025: "460408c33930d5addc9bb99376164c27aaf2ee3462830bc758950af25ae6b419",
}

# The closing instruction of the prompts in jianzhnie/LLMEval and other collections; ours takes its place.
_FOREIGN_INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

HUB_DATASETS = {2024: "HuggingFaceH4/aime_2024", 2025: "MathArena/aime_2025", 2026: "MathArena/aime_2026"}


def aime_tasks(section: AimeTask) -> list[QuestionTask]:
    """One task per year of the section.

    Raises:
        EvaluationError: a file that is missing, malformed, or does not hold 30 problems with answers from 0 to 999.
        MissingDependencyError: the hub cannot be reached.
    """
    if section.path is not None and len(section.years) > 1 and Path(section.path).is_file():
        raise EvaluationError(
            "one file cannot hold several years.", file=section.path, key="path", fix="name a folder with aime24.jsonl ... or one year."
        )
    return [_task_of_year(section, year) for year in section.years]


def read_rows(rows: Iterable[tuple[int | None, Any]], *, origin: str | Path, year: int) -> tuple[TaskProblem, ...]:
    """The problems of one year from parsed rows, each with its line where there is one.

    Raises:
        EvaluationError: a row without problem or answer, a repeated problem, or not exactly 30 rows.
    """
    problems: list[TaskProblem] = []
    seen: set[str] = set()
    for line, row in rows:
        if isinstance(row, UntrustedInputError):
            raise row
        question, gold = _question_and_gold(row, origin, line)
        if question in seen:
            raise EvaluationError("this problem stands in the file twice.", file=origin, line=line, fix="remove one of the two rows.")
        seen.add(question)
        problems.append(TaskProblem(f"aime_{year}/{len(problems) + 1:02d}", question, gold))
    if len(problems) != PROBLEMS_PER_YEAR:
        raise EvaluationError(
            f"AIME {year} has {PROBLEMS_PER_YEAR} problems, here are {len(problems)}.",
            file=origin,
            fix="use a complete file; `limit` evaluates fewer of its problems.",
        )
    return tuple(problems)


def _task_of_year(section: AimeTask, year: int) -> QuestionTask:
    if section.path is None:
        origin: str | Path = HUB_DATASETS[year]
        problems = read_rows(_hub_rows(year), origin=origin, year=year)
    else:
        origin = _local_file(Path(section.path), year)
        problems = read_rows(iter_json_lines(origin), origin=origin, year=year)
    notes = _check_answers(problems, origin, year)
    title = f"AIME {year}"
    if section.limit is not None and section.limit < len(problems):
        title += f", first {section.limit} of {len(problems)} problems"
        problems = problems[: section.limit]
    return QuestionTask(
        name=f"aime_{year}",
        title=title,
        samples=section.samples,
        problems=problems,
        grader=IntegerGrader(),
        instruction=INSTRUCTION,
        notes=notes,
    )


def _check_answers(problems: tuple[TaskProblem, ...], origin: str | Path, year: int) -> tuple[str, ...]:
    """Notes about data whose answers are not the year's.

    Raises:
        EvaluationError: they are those of another year.
    """
    answers = ",".join(str(answer) for answer in sorted(int(problem.gold) for problem in problems))
    digest = hashlib.sha256(answers.encode()).hexdigest()
    if year in _ANSWERS and digest == _ANSWERS[year]:
        return ()
    for other, known in _ANSWERS.items():
        if digest == known:
            fix = f"write years: [{other}], or name the file of {year}."
            raise EvaluationError(f"these are the problems of {other}, not of {year}.", file=origin, key="years", fix=fix)
    return (f"data: {origin}, whose answers are not the published ones",) if year in _ANSWERS else ()


def _local_file(path: Path, year: int) -> Path:
    if not path.is_dir():
        return path
    names = (f"aime{year % 100}.jsonl", f"aime{year}.jsonl", f"aime_{year}.jsonl")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise EvaluationError(f"the folder holds no AIME {year}.", file=path, key="path", fix=f"put a file named {names[0]} there.")


def _hub_rows(year: int) -> list[tuple[int | None, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(HUB_DATASETS[year], split="train")
    except Exception as error:
        raise MissingDependencyError(
            f"AIME {year} could not be loaded from the hub ({type(error).__name__}: {str(error)[:200]}).",
            key=HUB_DATASETS[year],
            fix="check the connection, or set `path` to a local JSON lines file.",
        ) from error
    rows = [dict(row) for row in dataset]
    rows.sort(key=lambda row: row.get("problem_idx") or 0)
    return [(None, row) for row in rows]


def _question_and_gold(row: Any, origin: str | Path, line: int | None) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise EvaluationError(
            "a row is an object with problem and answer.", file=origin, line=line, fix='write {"problem": "...", "answer": 70}.'
        )
    question = row.get("problem", row.get("prompt"))
    if not isinstance(question, str) or not question.strip() or len(question) > MAX_PROBLEM_CHARACTERS:
        raise EvaluationError(
            "no problem text.", file=origin, line=line, key="problem", fix="give each row a problem of one to 20,000 characters."
        )
    answer = row.get("answer")
    digits = str(answer).strip() if isinstance(answer, int | str) and not isinstance(answer, bool) else ""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3):
        raise EvaluationError("is not an integer from 0 to 999.", file=origin, line=line, key="answer", fix="correct the row's answer.")
    return question.removesuffix(_FOREIGN_INSTRUCTION).strip(), str(int(digits))
