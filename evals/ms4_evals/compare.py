"""Two runs side by side, problem by problem: which problems they differ on, and by how much they differ in score and length.

Only equal evaluations are compared. Where data, prompt, grader or sampling differ, the comparison is refused and says which.
Exercise it: ``pytest tests/evals/ms4_evals/test_compare.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ms4_evals.outside_text import one_line
from ms4_evals.report_values import pairing_values, rounded
from ms4_evals.statistics.pairs import compare_pairs
from ms4_evals.statistics.stored import read_summary
from ms4_evals.statistics.summary import Summary
from ms4_evals.store.records import Evaluation, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME
from ms4_train.errors import EvaluationError

COMPARISON_FORMAT = "ms4-comparison/1"
COMPARED = ("total_chars", "total_tokens")
"""Mean lengths that stand beside each problem."""


@dataclass(frozen=True)
class Side:
    """One of the two runs, with the store that holds it."""

    store: ResultStore
    run: RunRecord


def find_run(store: ResultStore, name: str | None = None) -> RunRecord:
    """A run by its label or the start of its id; without a name, the only run of the store.

    Raises:
        EvaluationError: no run fits, or several do.
    """
    runs = store.runs()
    fitting = [run for run in runs if name is None or run.label == name] or [run for run in runs if name and run.run_id.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(f"{one_line(run.label)} ({run.run_id[:8]})" for run in runs) or "no run"
    if name is None:
        problem = "the store holds several runs" if runs else "the store holds no run"
    else:
        problem = f"{'several runs are' if fitting else 'no run is'} called {one_line(name)}"
    raise EvaluationError(f"{problem}: {held}.", file=store.path, fix="name one by its label or the start of its id.")


def compare_runs(
    first: Side,
    second: Side,
    *,
    confidence: float,
    resamples: int,
    tasks: Sequence[str] = (),
    modes: Sequence[str] = (),
    allow_errors: bool = False,
) -> dict[str, Any]:
    """The comparison as JSON values; every difference is first - second.

    Args:
        first, second: of one store or of two.
        confidence: of every interval.
        resamples: of the bootstrap, which is seeded with the first run's seed.
        tasks, modes: what to compare; default: all that both runs have.
        allow_errors: compare although samples are missing, ungraded or errors.

    Raises:
        EvaluationError: nothing to compare; or a task that both have differs in data, prompt, grader or sampling; or one is not complete.
    """
    pairs, only = _pair_up(first, second, tasks, modes)
    boards: dict[str, list[dict[str, Any]]] = {}
    titles: dict[str, Evaluation] = {}
    for a, b in pairs:
        settings = {"confidence": confidence, "resamples": resamples, "seed": first.run.seed, "allow_errors": allow_errors}
        boards.setdefault(a.board_id, []).append(_mode_values(first, second, a, b, **settings))
        titles[a.board_id] = a
    return {
        "format": COMPARISON_FORMAT,
        "first": {"label": first.run.label, "run_id": first.run.run_id},
        "second": {"label": second.run.label, "run_id": second.run.run_id},
        "token_counter": TOKENIZER_NAME,
        "confidence": confidence,
        "bootstrap_samples": resamples,
        "only_first": only[0],
        "only_second": only[1],
        "tasks": [
            {
                "task": titles[board_id].task,
                "title": titles[board_id].title,
                "board_id": board_id,
                "grader": titles[board_id].grader_id,
                "problems": len(titles[board_id].problems),
                "modes": modes,
            }
            for board_id, modes in boards.items()
        ],
    }


def differing_parts(first: Evaluation, second: Evaluation) -> list[str]:
    """What keeps two evaluations of one task and mode apart, in words: data, prompt, grader, sampling."""
    parts: list[str] = []
    golds = [{problem.problem_id: problem.gold for problem in evaluation.problems} for evaluation in (first, second)]
    shared = golds[0].keys() & golds[1].keys()
    unshared = len(golds[0].keys() ^ golds[1].keys())
    changed = sum(golds[0][name] != golds[1][name] for name in shared)
    if unshared:
        parts.append(f"data ({len(golds[0])} and {len(golds[1])} problems, {len(shared)} of them the same)")
    elif changed:
        parts.append(f"data (other right answers or tests of {changed} problems)")
    elif [*golds[0]] != [*golds[1]]:
        parts.append("data (another order of the problems)")
    prompts = [{problem.problem_id: problem.prompt_id for problem in evaluation.problems} for evaluation in (first, second)]
    reworded = sum(prompts[0][name] != prompts[1][name] for name in shared)
    if reworded:
        parts.append(f"prompt (of {reworded} problems)")
    if first.grader_id != second.grader_id:
        parts.append(f"grader ({one_line(first.grader_id)} and {one_line(second.grader_id)})")
    settings = sorted(first.sampling.keys() | second.sampling.keys())
    others = [
        f"{one_line(name)} {first.sampling.get(name)} and {second.sampling.get(name)}"
        for name in settings
        if first.sampling.get(name) != second.sampling.get(name)
    ]
    if others:
        parts.append(f"sampling ({', '.join(others)})")
    return parts or ["identity (made by another version of the task)"]


def _pair_up(
    first: Side, second: Side, tasks: Sequence[str], modes: Sequence[str]
) -> tuple[list[tuple[Evaluation, Evaluation]], tuple[list[str], list[str]]]:
    """Equal evaluations, and what only one of the two runs has."""
    sides = [
        {
            evaluation.column_id: evaluation
            for evaluation in side.store.evaluations(side.run.run_id)
            if (not tasks or evaluation.task in tasks) and (not modes or evaluation.mode in modes)
        }
        for side in (first, second)
    ]
    if missing := [name for name in tasks if not all(any(e.task == name for e in side.values()) for side in sides)]:
        held = [{e.task for e in side.store.evaluations(side.run.run_id)} for side in (first, second)]
        both = ", ".join(map(one_line, sorted(held[0] & held[1])))
        fix = f"name one of {both}." if both else "evaluate both on the same tasks."
        raise EvaluationError(f"not both runs have the task {one_line(missing[0])}.", file=first.store.path, key="--task", fix=fix)
    pairs = [(evaluation, sides[1][column]) for column, evaluation in sides[0].items() if column in sides[1]]
    paired = {(evaluation.task, evaluation.mode) for evaluation, _ in pairs}
    for evaluation in sides[0].values():
        for other in sides[1].values():
            place = (evaluation.task, evaluation.mode)
            if place == (other.task, other.mode) and place not in paired:
                raise EvaluationError(
                    f"{one_line(evaluation.task)}, mode {evaluation.mode}, is not the same in both runs; different:"
                    f" {'; '.join(differing_parts(evaluation, other))}.",
                    file=second.store.path,
                    fix="evaluate both with the same settings, or name what to compare with --task and --mode.",
                )
    if not pairs:
        raise EvaluationError(
            "the two runs have no task in common.", file=second.store.path, fix="evaluate both on the same tasks; see `ms4 eval status`."
        )
    only = tuple(
        [f"{e.task}, {e.mode}" for e in side.values() if (e.task, e.mode) not in {(o.task, o.mode) for o in other.values()}]
        for side, other in (sides, sides[::-1])
    )
    return pairs, (only[0], only[1])


def _mode_values(
    first: Side, second: Side, a: Evaluation, b: Evaluation, *, confidence: float, resamples: int, seed: int, allow_errors: bool
) -> dict[str, Any]:
    summaries = [
        read_summary(side.store, side.run.run_id, evaluation, confidence=confidence)[0] for side, evaluation in ((first, a), (second, b))
    ]
    pairing = compare_pairs(summaries[0], summaries[1], confidence=confidence, resamples=resamples, seed=seed, allow_errors=allow_errors)
    if pairing is None:
        worse = next((s for s in summaries if not s.is_complete), summaries[0])
        side = first if worse is summaries[0] else second
        raise EvaluationError(
            f"{one_line(a.task)}, mode {a.mode}, is not complete in the run {one_line(side.run.label)}: {worse.missing} missing,"
            f" {worse.ungraded} ungraded, {worse.errors} errors of {worse.evaluation.planned} samples.",
            file=side.store.path,
            fix="go on with that run (`ms4 eval resume`), or compare what there is with --allow-errors.",
        )
    return {
        "mode": a.mode,
        "column_id": a.column_id,
        "sampling": dict(a.sampling),
        "first": _side_values(summaries[0]),
        "second": _side_values(summaries[1]),
        "difference": pairing_values(pairing),
        "problems": _problem_rows(summaries[0], summaries[1]),
    }


def _side_values(summary: Summary) -> dict[str, Any]:
    lengths = {name: groups["all"].mean if groups["all"] else None for name, groups in summary.lengths.items()}
    return rounded(
        {
            "score": summary.score.value if summary.score else None,
            "samples_per_problem": summary.evaluation.samples,
            "graded": summary.graded,
            "left_out": summary.left_out,
            "verdicts": dict(summary.verdicts),
            "mean_lengths": lengths,
        }
    )


def _problem_rows(first: Summary, second: Summary) -> list[dict[str, Any]]:
    """Every problem that the two differ on, the largest difference first and in the order of the task among equals."""
    rows: list[dict[str, Any]] = []
    for planned in first.evaluation.problems:
        a, b = first.problems.get(planned.problem_id), second.problems.get(planned.problem_id)
        if a is None or b is None or a.share == b.share:
            continue
        rows.append(
            {
                "problem": planned.problem_id,
                "first": {"correct": a.correct, "samples": a.samples} | {name: a.lengths[name] for name in COMPARED},
                "second": {"correct": b.correct, "samples": b.samples} | {name: b.lengths[name] for name in COMPARED},
                "difference": float(a.share - b.share),
                "facts": dict(planned.facts),
            }
        )
    return rounded(sorted(rows, key=lambda row: -abs(row["difference"])))
