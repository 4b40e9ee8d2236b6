"""What a store holds and how far it is, also beside a writer: counts, errors, the score so far, speed, and time left.

The score so far is no result: what is missing is not a random part. Exercise it: ``pytest tests/evals/ms4_evals/test_status.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ms4_evals.markdown import percent
from ms4_evals.outside_text import one_line
from ms4_evals.report_values import rounded
from ms4_evals.statistics.scores import Score, score
from ms4_evals.store.queries import Counts, counts, last_session
from ms4_evals.store.records import Evaluation
from ms4_evals.store.results import ResultStore

STATUS_FORMAT = "ms4-status/1"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class EvaluationStatus:
    """How far one task in one mode is.

    Attributes:
        drawn: samples that are there, errors included. graded: those with a verdict, errors left out.
        errors: by class.
        missing: planned samples that are not drawn.
        score: of the graded samples so far; None without any.
    """

    evaluation: Evaluation
    drawn: int
    graded: int
    errors: dict[str, int]
    ungraded: int
    missing: int
    score: Score | None

    @property
    def is_complete(self) -> bool:
        """Nothing is missing, ungraded or an error."""
        return self.graded == self.evaluation.planned


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    Attributes:
        is_running: a writer works on this run now.
        elapsed: seconds since it was started, while it runs.
        answers_per_second, tokens_per_second: since then, over all tasks; None before the first answer.
        seconds_left: an estimate; None where nothing is running or nothing is known yet.
    """

    label: str
    run_id: str
    evaluations: tuple[EvaluationStatus, ...]
    is_running: bool
    elapsed: float | None
    answers_per_second: float | None
    tokens_per_second: float | None
    seconds_left: float | None


def store_status(store: ResultStore, *, now: datetime.datetime | None = None) -> list[RunStatus]:
    """The state of every run of a store, as of one moment.

    Args:
        store: may be written to meanwhile.
        now: the time; default: the clock's.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    is_written = writer_of(store.path) is not None
    with store.snapshot():
        return [_run_status(store, run.run_id, run.label, now, is_written=is_written) for run in store.runs()]


def writer_of(path: Path) -> int | None:
    """Process that holds the store's lock on this machine; None where there is none, or where it is not seen from here.

    The lock itself is left alone: taking it, even for a moment, could turn away a writer that starts just then. Its holder wrote its number
    into the file and keeps it open.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        place, holder = lock.stat(), lock.read_text(encoding="ascii", errors="replace")[:20].strip()
    except OSError:
        return None
    if not holder.isdigit():
        return None
    try:
        for descriptor in Path(f"/proc/{holder}/fd").iterdir():
            with contextlib.suppress(OSError):
                if descriptor.stat().st_ino == place.st_ino and descriptor.stat().st_dev == place.st_dev:
                    return int(holder)
    except PermissionError:
        return int(holder)  # somebody else's process
    except OSError:
        return None
    return None


def status_values(statuses: list[RunStatus]) -> dict[str, Any]:
    """The state as JSON values."""
    return rounded(
        {
            "format": STATUS_FORMAT,
            "runs": [
                {
                    "label": status.label,
                    "run_id": status.run_id,
                    "running": status.is_running,
                    "elapsed_seconds": status.elapsed,
                    "answers_per_second": status.answers_per_second,
                    "tokens_per_second": status.tokens_per_second,
                    "seconds_left": status.seconds_left,
                    "evaluations": [
                        {
                            "task": item.evaluation.task,
                            "title": item.evaluation.title,
                            "mode": item.evaluation.mode,
                            "column_id": item.evaluation.column_id,
                            "planned": item.evaluation.planned,
                            "drawn": item.drawn,
                            "graded": item.graded,
                            "ungraded": item.ungraded,
                            "missing": item.missing,
                            "errors": item.errors,
                            "complete": item.is_complete,
                            "score_so_far": dataclasses.asdict(item.score) if item.score else None,
                        }
                        for item in status.evaluations
                    ],
                }
                for status in statuses
            ],
        }
    )


def status_table(status: RunStatus) -> Table:
    """One run as a table for a terminal."""
    table = Table(title=Text(f"{one_line(status.label)} ({status.run_id[:8]})"), title_justify="left", title_style="bold")
    table.caption, table.caption_justify = Text(_speed_text(status)), "left"
    table.add_column("task", overflow="fold", min_width=12)
    table.add_column("mode", no_wrap=True)
    for name in ("drawn", "graded", "errors"):
        table.add_column(name, justify="right")
    table.add_column("score so far %", justify="right", no_wrap=True)
    places: dict[tuple[str, str], list[Mapping[str, float | int]]] = {}
    for item in status.evaluations:
        places.setdefault((item.evaluation.board_id, item.evaluation.mode), []).append(item.evaluation.sampling)
    for item in status.evaluations:
        others = places[item.evaluation.board_id, item.evaluation.mode]
        mode = "\n".join([item.evaluation.mode, *_differing(item.evaluation.sampling, others)])
        errors = Text(", ".join(f"{count:,} {one_line(name)}" for name, count in item.errors.items()) or "0")
        errors.stylize("red" if item.errors else "")
        drawn = f"{item.drawn:,} of {item.evaluation.planned:,}"
        graded = f"{item.graded:,}" + (f"\n{item.ungraded:,} waiting" if item.ungraded else "")
        shown = "-" if item.score is None else f"{percent(item.score.value)} [{percent(item.score.low)}, {percent(item.score.high)}]"
        table.add_row(Text(one_line(item.evaluation.title)), Text(mode), drawn, graded, errors, Text(shown))
    return table


def _differing(sampling: Mapping[str, float | int], among: list[Mapping[str, float | int]]) -> list[str]:
    """What tells an evaluation from those of the same task and mode that were sampled in another way."""
    return [f"{one_line(name)} {value}" for name, value in sampling.items() if any(other.get(name) != value for other in among)]


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 10 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _run_status(store: ResultStore, run_id: str, label: str, now: datetime.datetime, *, is_written: bool) -> RunStatus:
    found = [(evaluation, counts(store, run_id, evaluation)) for evaluation in store.evaluations(run_id)]
    session = last_session(store, run_id)
    elapsed = answers = tokens = left = None
    if is_written and session is not None:
        with contextlib.suppress(ValueError):
            elapsed = max(0.0, (now - datetime.datetime.fromisoformat(session.started)).total_seconds())
    if elapsed and session is not None and session.answers:
        answers, tokens = session.answers / elapsed, session.tokens / elapsed
        left = _seconds_left(found, in_flight=session.seconds / elapsed)
    return RunStatus(
        label=label,
        run_id=run_id,
        evaluations=tuple(_evaluation_status(evaluation, item) for evaluation, item in found),
        is_running=is_written and session is not None,
        elapsed=elapsed,
        answers_per_second=answers,
        tokens_per_second=tokens,
        seconds_left=left,
    )


def _evaluation_status(evaluation: Evaluation, found: Counts) -> EvaluationStatus:
    correct_ps = [[True] * correct + [False] * (graded - correct) for correct, graded in found.problems]
    return EvaluationStatus(
        evaluation=evaluation,
        drawn=found.drawn,
        graded=sum(graded for _, graded in found.problems),
        errors=found.errors,
        ungraded=found.ungraded,
        missing=evaluation.planned - found.drawn,
        # The runs' spread is left out: which sample of a problem was right is not known here.
        score=dataclasses.replace(score(correct_ps, CONFIDENCE), standard_error_runs=None) if correct_ps else None,
    )


def _seconds_left(found: list[tuple[Evaluation, Counts]], *, in_flight: float) -> float | None:
    """What is still to be drawn takes as long per answer as what was drawn of its task and mode, with as many answers in flight as so far.

    A task without answers yet is taken to be like the average of the others.
    """
    timed = sum(item.timed for _, item in found)
    if not timed or in_flight <= 0:
        return None
    average = sum(item.seconds for _, item in found) / timed
    work = sum((evaluation.planned - item.timed) * (item.seconds / item.timed if item.timed else average) for evaluation, item in found)
    return work / in_flight


def _speed_text(status: RunStatus) -> str:
    if not status.is_running:
        return "not running" if not all(item.is_complete for item in status.evaluations) else "complete"
    parts = ["running" if status.elapsed is None else f"running for {duration(status.elapsed)}"]
    if status.answers_per_second is not None and status.tokens_per_second is not None:
        parts += [f"{status.answers_per_second:,.2g} answers/s", f"{status.tokens_per_second:,.0f} tokens/s"]
    if status.seconds_left is not None:
        parts.append(f"some {duration(status.seconds_left)} left")
    return ", ".join(parts)
