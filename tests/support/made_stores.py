"""Results stores whose every sample is written by the test: no model, no grader, verdicts and lengths as the test wants them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ms4_evals.graders.base import Grade
from ms4_evals.identity import content_hash, sample_seed
from ms4_evals.store.records import Evaluation, GradedSample, PlannedProblem, RunRecord, Sample
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import board_of, column_of, grading_of, sampling_id

INTEGERS = "integer-box/1.0"
PROGRAMS = "livecodebench-strict/1.0"

Rule = Callable[[Evaluation, int, int], tuple[dict[str, Any], Grade | None] | None]
"""From (evaluation, problem, sample index) to what differs in the sample, and its grade; None for a sample that is not drawn."""


def made_problems(task: str, count: int, facts: Callable[[int], Mapping[str, str | int]] = lambda index: {}) -> tuple[PlannedProblem, ...]:
    """Problems with the golds 0, 1 ..."""
    return tuple(
        PlannedProblem(
            problem_id=f"{task}/{index:03d}",
            prompt_id=content_hash(["prompt", task, index]),
            grading_id=content_hash(["grading", task, index]),
            gold=str(index),
            question=f"Question {index} of {task}?",
            facts=facts(index),
        )
        for index in range(count)
    )


def made_evaluation(
    task: str = "aime_2025",
    mode: str = "high",
    problems: int | Sequence[PlannedProblem] = 4,
    samples: int = 2,
    *,
    grader_id: str = INTEGERS,
    second_grader: str = "math-verify",
    sampling: Mapping[str, float | int] | None = None,
    board: str = "",
) -> Evaluation:
    """An evaluation with identities made from its parts, as the runner makes them."""
    made = made_problems(task, problems) if isinstance(problems, int) else problems
    planned = tuple(dataclasses.replace(item, grading_id=grading_of(grader_id, item.gold)) for item in made)
    chosen = dict(sampling or {"temperature": 0.7, "top_p": 1.0, "max_tokens": 4096})
    board_id = board_of(task, grader_id, [(item.problem_id, item.gold, item.prompt_id) for item in planned])
    if board:
        board_id = content_hash([board, board_id])  # as another version of the task would make it
    return Evaluation(
        task=task,
        title=f"{task.replace('_', ' ').upper()}, {len(planned)} problems",
        mode=mode,
        board_id=board_id,
        column_id=column_of(board_id, mode, chosen),
        sampling_id=sampling_id(chosen),
        sampling=chosen,
        grader_id=grader_id,
        second_grader=second_grader,
        samples=samples,
        problems=planned,
    )


def made_run(label: str = "made", seed: int = 0, **model: Any) -> RunRecord:
    return RunRecord(label, {"weights": label} | model, seed)


def made_sample(evaluation: Evaluation, problem: int, index: int, **values: Any) -> Sample:
    """A sample of ten characters of thinking and four of answer; ``values`` replace its own."""
    planned = evaluation.problems[problem]
    sample = Sample(
        problem_id=planned.problem_id,
        prompt_id=planned.prompt_id,
        mode=evaluation.mode,
        sampling_id=evaluation.sampling_id,
        sample_index=index,
        seed=sample_seed(0, planned.problem_id, index, evaluation.mode),
        prompt_hash=content_hash([planned.prompt_id, evaluation.mode]),
        thinking="a thought." if evaluation.mode == "high" else "",
        answer="done",
        thinking_is_open=0,
        thinking_tokens=3 if evaluation.mode == "high" else 0,
        answer_tokens=1,
        finish_reason="stop",
        seconds=2.0,
    )
    return dataclasses.replace(sample, **values)


def failed_sample(error_class: str = "timeout") -> tuple[dict[str, Any], Grade]:
    """What a rule gives for a sample without an answer."""
    values = {"thinking": "", "answer": "", "thinking_tokens": 0, "answer_tokens": 0, "finish_reason": ""}
    return values | {"error": "no bytes came", "error_class": error_class}, Grade("error", None)


def right_or_wrong(is_right: Callable[[Evaluation, int, int], bool]) -> Rule:
    """A rule that grades and nothing else."""
    return lambda evaluation, problem, index: ({}, Grade("correct" if is_right(evaluation, problem, index) else "wrong", "1"))


def fill(store: ResultStore, run: RunRecord, evaluations: Sequence[Evaluation], rule: Rule) -> None:
    """Register and write every sample that the rule gives."""
    store.register(run, {"confidence": 0.95, "bootstrap_samples": 200}, {"made": "1"}, evaluations)
    for evaluation in evaluations:
        for problem, planned in enumerate(evaluation.problems):
            for index in range(evaluation.samples):
                made = rule(evaluation, problem, index)
                if made is not None:
                    store.add(run.run_id, made_sample(evaluation, problem, index, **made[0]), made[1], planned.grading_id)


def write_store(path: Path, runs: Mapping[str, Rule], evaluations: Sequence[Evaluation]) -> Path:
    """A store of some runs, by label, of the same evaluations; without waiting for the disk, which nobody pulls here."""
    with ResultStore.open(path) as store:
        store._connection.execute("PRAGMA synchronous = OFF")
        for label, rule in runs.items():
            fill(store, made_run(label), evaluations, rule)
    return path


def graded(evaluation: Evaluation, problem: int, index: int, verdict: str, **values: Any) -> GradedSample:
    """A graded sample without any store: ten characters of thinking, four of answer."""
    planned = evaluation.problems[problem]
    sample = GradedSample(
        sample_id=100 * problem + index,
        problem_id=planned.problem_id,
        grading_id=planned.grading_id,
        sample_index=index,
        seed=0,
        gold=planned.gold,
        thinking_chars=10,
        answer_chars=4,
        thinking_is_open=0,
        thinking_tokens=3,
        answer_tokens=1,
        prompt_tokens=None,
        usage_tokens=None,
        usage_thinking_tokens=None,
        cost=None,
        seconds=2.0,
        first_token_seconds=None,
        endpoint="",
        attempts=1,
        finish_reason="stop",
        error=None,
        error_class=None,
        verdict=verdict,
        extracted="1",
        opinion=None,
    )
    return dataclasses.replace(sample, **values)


COUNTS_BYTES = os.access("/proc/self/io", os.R_OK)


def bytes_read() -> int:
    """Bytes that this process has asked the system to read so far, from the disk or from memory; where ``COUNTS_BYTES``."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
