"""Gives stored samples their verdicts: at once, or in threads beside the drawing for graders that run programs or ask judges.

Verdicts are committed by the thread that owns the store. A sample whose grader failed keeps no verdict; the next start grades it.
Exercise it: ``pytest tests/evals/ms4_evals/test_grading.py``.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from ms4_evals.graders.base import Grade, Grader, GradingFailure
from ms4_evals.store.records import PlannedProblem, Sample
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import TaskProblem
from ms4_train.errors import StoppedError

DEFAULT_WORKERS = 4
_FAILURES_LISTED = 5
_ASKED_SECONDS = 0.5
"""How often a wait asks whether to stop."""


@dataclass(frozen=True)
class _Waiting:
    sample_id: int
    grading_id: str


def grade_sample(grader: Grader, problem: TaskProblem, sample: Sample) -> Grade:
    """The verdict on a sample; ``error`` without asking the grader for one that has no answer.

    Raises:
        GradingFailure: as ``Grader.grade``.
    """
    if sample.error is not None:
        return Grade("error", None)
    return grader.grade(problem, sample.answer, is_truncated=sample.finish_reason == "length")


def never() -> bool:
    """No."""
    return False


class Grading:
    """Grades samples of one store; a context manager.

    It leaves no thread behind, unless it is left by an error or Ctrl-C, or told to stop: then nobody waits for what is being graded, which
    may be a program that runs for minutes. It ends when its sandbox or judge is closed, and is graded at the next start.

    Args:
        store: open to write; used in the calling thread only.
        workers: threads for graders that take their time.
        on_grade: called in the calling thread whenever such a verdict is stored.
        should_stop: asked in the calling thread while it waits.
    """

    def __init__(
        self,
        store: ResultStore,
        *,
        workers: int = DEFAULT_WORKERS,
        on_grade: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._on_grade, self._should_stop = on_grade, should_stop
        self._waiting: dict[Future[Grade], _Waiting] = {}
        self._asked: set[_Waiting] = set()
        self._failed: set[_Waiting] = set()
        self.failures: list[str] = []

    def __enter__(self) -> Grading:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is None or isinstance(error, KeyboardInterrupt | StoppedError):
            self.collect()  # what is graded already is not lost

    @property
    def failed(self) -> int:
        """Samples whose grader failed and has not succeeded since."""
        return len(self._failed)

    @property
    def waiting(self) -> int:
        """Samples without a verdict yet."""
        return len(self._waiting)

    def add(self, run_id: str, sample: Sample, grader: Grader, problem: TaskProblem, planned: PlannedProblem) -> None:
        """Store a sample and have it graded."""
        if sample.error is not None or grader.is_instant:
            grade = self._grade_now(grader, problem, sample)
            sample_id = self._store.add(run_id, sample, None if isinstance(grade, GradingFailure) else grade, planned.grading_id)
            self._settle(_Waiting(sample_id, planned.grading_id), grade)
        else:
            self._later(self._store.add(run_id, sample, None, planned.grading_id), sample, grader, problem, planned)
        self.collect()

    def again(self, sample_id: int, sample: Sample, grader: Grader, problem: TaskProblem, planned: PlannedProblem) -> None:
        """Have a stored sample graded that has no verdict under this grading."""
        if sample.error is None and not grader.is_instant:
            self._later(sample_id, sample, grader, problem, planned)
            self.collect()
            return
        grade = self._grade_now(grader, problem, sample)
        if not isinstance(grade, GradingFailure):
            self._store.add_grade(sample_id, planned.grading_id, grade)
        self._settle(_Waiting(sample_id, planned.grading_id), grade)

    def collect(self) -> None:
        """Store the verdicts that have come in; does not wait."""
        for future in [future for future in self._waiting if future.done()]:
            self._finish(future)

    def finish(self) -> None:
        """Wait for all verdicts, storing each as it comes.

        Raises:
            StoppedError: somebody asked to stop.
        """
        while self._waiting:
            if self._should_stop():
                left = len(self._waiting)
                raise StoppedError(f"stopped with {left} samples to grade.", fix="run the same command again to go on.")
            done, _ = concurrent.futures.wait(self._waiting, timeout=_ASKED_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                self._finish(future)

    def _later(self, sample_id: int, sample: Sample, grader: Grader, problem: TaskProblem, planned: PlannedProblem) -> None:
        waiting = _Waiting(sample_id, planned.grading_id)
        if waiting in self._asked:
            return  # windows of one benchmark overlap: another task of this run has asked for this very verdict
        self._asked.add(waiting)
        self._waiting[self._pool.submit(grade_sample, grader, problem, sample)] = waiting

    def _grade_now(self, grader: Grader, problem: TaskProblem, sample: Sample) -> Grade | GradingFailure:
        try:
            return grade_sample(grader, problem, sample)
        except GradingFailure as failure:
            return failure

    def _finish(self, future: Future[Grade]) -> None:
        waiting = self._waiting.pop(future)
        try:
            grade = future.result()
        except (GradingFailure, concurrent.futures.CancelledError) as failure:
            self._asked.discard(waiting)
            self._settle(waiting, failure)
            return
        self._store.add_grade(waiting.sample_id, waiting.grading_id, grade)
        self._settle(waiting, grade)
        self._on_grade()

    def _settle(self, graded: _Waiting, outcome: Grade | BaseException) -> None:
        """Count a sample among those whose grader failed, or no longer."""
        if not isinstance(outcome, BaseException):
            self._failed.discard(graded)
            return
        self._failed.add(graded)
        if len(self.failures) < _FAILURES_LISTED:
            self.failures.append(str(outcome) or type(outcome).__name__)
