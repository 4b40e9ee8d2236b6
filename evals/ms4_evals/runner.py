"""Runs evaluations: plan, leave out what the store holds, draw the rest, grade, store; then ask for second opinions.

Every sample is committed the moment it is there, and graded beside the drawing, so a run that is killed anywhere goes on from its store and
repeats nothing that was finished. Exercise it: ``pytest tests/evals/ms4_evals/test_runner.py``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_evals.clients.base import Client, SampleAnswer, SampleRequest
from ms4_evals.graders.base import MATH_VERIFY
from ms4_evals.graders.second_opinion import SecondOpinion
from ms4_evals.grading import DEFAULT_WORKERS, Grading, never
from ms4_evals.identity import content_hash, sample_seed
from ms4_evals.progress import Progress
from ms4_evals.store.records import Evaluation, PlannedProblem, RunRecord, Sample
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import MODES, Mode, Task, TaskProblem, board_id, column_id, grading_id, prompt_id, sampling_id, shown_prompt
from ms4_evals.token_counts import count_tokens
from ms4_train.config.eval_tasks import ModesSection
from ms4_train.errors import EvaluationError

_OPINIONS_PER_COMMIT = 100


@dataclass(frozen=True)
class Plan:
    """One task in one mode, with the task itself."""

    task: Task
    evaluation: Evaluation


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        reused: samples that the store held already.
        drawn: samples drawn now, errors included.
        errors: samples that ended in an error now; they are drawn again when the run is started again.
        ungraded: answers that have no verdict because their grader failed; they are graded when the run is started again.
        grader_failures: what some of those failures were.
    """

    reused: int
    drawn: int
    errors: int
    ungraded: int = 0
    grader_failures: tuple[str, ...] = ()


def make_plans(tasks: Sequence[Task], modes: ModesSection) -> list[Plan]:
    """One plan per task and mode.

    Raises:
        EvaluationError: no mode is on.
    """
    samplings: dict[Mode, dict[str, float | int]] = {
        mode: section.model_dump() for mode in MODES if (section := getattr(modes, mode)) is not None
    }
    if not samplings:
        raise EvaluationError("both modes are off.", key="modes", fix="leave `none` or `high` on.")
    return [Plan(task, _plan_evaluation(task, mode, sampling)) for task in tasks for mode, sampling in samplings.items()]


def repeat_notes(plans: Sequence[Plan]) -> list[str]:
    """A sentence for every plan that draws several samples without chance: most engines then give the same answer each time."""
    return [
        f"{plan.evaluation.title}, mode {plan.evaluation.mode}: temperature 0, so its {plan.evaluation.samples} samples of a problem"
        " may be copies, and pass@k, cons@k and the standard error over runs say nothing"
        for plan in plans
        if plan.evaluation.samples > 1 and plan.evaluation.sampling["temperature"] == 0
    ]


def run_evaluations(
    client: Client,
    store: ResultStore,
    plans: Sequence[Plan],
    run: RunRecord,
    *,
    config: Mapping[str, Any],
    progress: Progress,
    second_opinion: SecondOpinion | None = None,
    workers: int = DEFAULT_WORKERS,
    should_stop: Callable[[], bool] = never,
) -> Outcome:
    """Draw, grade and store every planned sample that the store does not hold yet.

    Args:
        client: the model under test.
        store: open to write.
        plans: from ``make_plans``.
        run: identity of model and seed.
        config: recorded with the run.
        progress: told what happens.
        second_opinion: asked about integer answers; default: one of its own.
        workers: threads for graders that run programs or ask judges.
        should_stop: asked while verdicts are waited for; drawing asks the client's ranks.

    Raises:
        StoppedError: ``should_stop`` said yes, or the client's ranks were asked to stop.
        MS4Error: the client or the store cannot go on; everything finished until then is stored.
    """
    store.register(run, config, client.versions(), [plan.evaluation for plan in plans])
    try:
        drawing, grading = _draw_and_grade(client, store, plans, run, progress, workers, should_stop)
    except BaseException:
        store.forget_if_empty(run.run_id)  # a server that is down, a context that is too small: nothing has begun
        raise
    with contextlib.nullcontext(second_opinion) if second_opinion else SecondOpinion() as second:
        _ask_second_opinions(store, plans, run, second)
    return Outcome(drawing.reused, drawing.drawn, drawing.errors, grading.failed, tuple(grading.failures))


def _draw_and_grade(
    client: Client,
    store: ResultStore,
    plans: Sequence[Plan],
    run: RunRecord,
    progress: Progress,
    workers: int,
    should_stop: Callable[[], bool],
) -> tuple[_Drawing, Grading]:
    with Grading(store, workers=workers, on_grade=progress.graded, should_stop=should_stop) as grading:
        _grade_again(store, plans, run, grading)
        drawing = _Drawing(store, run, progress, grading)
        # Thinking takes longest, so it starts first: the short direct answers then fill the batch towards the end.
        for plan in sorted(plans, key=lambda plan: plan.evaluation.mode != "high"):
            drawing.want(plan)
        with progress:
            drawing.draw(client)
            if drawing.shared:
                grading.finish()
                _grade_again(store, plans, run, grading)
            progress.grade(grading.waiting)
            grading.finish()
    return drawing, grading


class _Drawing:
    """The samples of one run that are still to be drawn."""

    def __init__(self, store: ResultStore, run: RunRecord, progress: Progress, grading: Grading) -> None:
        self._store = store
        self._run = run
        self._progress = progress
        self._grading = grading
        self._wanted: dict[str, tuple[SampleRequest, Plan, TaskProblem, PlannedProblem]] = {}
        self.reused = self.drawn = self.errors = self.shared = 0

    def want(self, plan: Plan) -> None:
        """Add every sample of the plan that is not finished."""
        evaluation = plan.evaluation
        finished = self._store.finished(self._run.run_id, evaluation)
        self.reused += len(finished)
        pairs = list(zip(plan.task.problems, evaluation.problems, strict=True))
        indices, before = range(evaluation.samples), self.shared
        if plan.task.groups_samples:
            order = [(index, *pair) for pair in pairs for index in indices]
        else:
            order = [(index, *pair) for index in indices for pair in pairs]
        for index, problem, planned in order:
            if (problem.problem_id, index) not in finished:
                request = _sample_request(plan, problem, index, self._run.seed)
                # Windows of one benchmark may overlap; what they share is drawn once, and belongs to both.
                if request.request_id in self._wanted:
                    _require_same_prompt(self._wanted[request.request_id][3], planned)
                    self.shared += 1
                else:
                    self._wanted[request.request_id] = (request, plan, problem, planned)
        self._progress.add_samples(evaluation.task, evaluation.mode, evaluation.planned, len(finished) + self.shared - before)

    def draw(self, client: Client) -> None:
        """Draw them all, committing each as it comes."""
        if self._wanted:
            client.answer([request for request, *_ in self._wanted.values()], self._finish, self._progress.tokens)

    def _finish(self, request: SampleRequest, answer: SampleAnswer) -> None:
        _, plan, problem, planned = self._wanted[request.request_id]
        sample = _sample(request, answer, plan.evaluation, planned)
        self._grading.add(self._run.run_id, sample, plan.task.grader, problem, planned)
        self.drawn += 1
        self.errors += sample.error is not None
        self._progress.finish(plan.evaluation.task, plan.evaluation.mode, is_error=sample.error is not None)


def _plan_evaluation(task: Task, mode: Mode, sampling: dict[str, float | int]) -> Evaluation:
    problems = tuple(
        PlannedProblem(
            problem_id=problem.problem_id,
            prompt_id=prompt_id(task.messages(problem)),
            grading_id=grading_id(task.grader, problem.gold),
            gold=problem.gold,
            question=problem.question,
            prompt=_storable(shown_prompt(task.messages(problem))),
            facts=problem.facts,
        )
        for problem in task.problems
    )
    return Evaluation(
        task=task.name,
        title=task.title,
        mode=mode,
        board_id=board_id(task),
        column_id=column_id(task, mode, sampling),
        sampling_id=sampling_id(sampling),
        sampling=sampling,
        grader_id=task.grader.grader_id,
        second_grader=task.grader.second_grader,
        samples=task.samples,
        problems=problems,
    )


def _sample_request(plan: Plan, problem: TaskProblem, index: int, run_seed: int) -> SampleRequest:
    mode, sampling = plan.evaluation.mode, plan.evaluation.sampling
    return SampleRequest(
        problem_id=problem.problem_id,
        mode=mode,
        sample_index=index,
        prompt=functools.partial(plan.task.messages, problem),
        temperature=float(sampling["temperature"]),
        top_p=float(sampling["top_p"]),
        max_tokens=int(sampling["max_tokens"]),
        seed=sample_seed(run_seed, problem.problem_id, index, mode),
    )


def _sample(request: SampleRequest, answer: SampleAnswer, evaluation: Evaluation, planned: PlannedProblem) -> Sample:
    thinking, final = _storable(answer.thinking), _storable(answer.answer)
    return Sample(
        problem_id=request.problem_id,
        prompt_id=planned.prompt_id,
        mode=request.mode,
        sampling_id=evaluation.sampling_id,
        sample_index=request.sample_index,
        seed=request.seed,
        prompt_hash=answer.prompt_hash,
        thinking=thinking,
        answer=final,
        thinking_is_open=int(answer.thinking_is_open),
        thinking_tokens=count_tokens(thinking),
        answer_tokens=count_tokens(final),
        finish_reason=answer.finish_reason,
        seconds=float(answer.seconds),
        prompt_tokens=answer.prompt_tokens,
        usage_tokens=answer.usage_tokens,
        usage_thinking_tokens=answer.usage_thinking_tokens,
        cost=None if answer.cost is None else float(answer.cost),
        endpoint=answer.endpoint,
        attempts=answer.attempts,
        first_token_seconds=None if answer.first_token_seconds is None else float(answer.first_token_seconds),
        error=answer.error,
        error_class=answer.error_class,
    )


def _require_same_prompt(first: PlannedProblem, second: PlannedProblem) -> None:
    """Samples that two tasks of a run share are drawn once; that holds only where both ask the same thing."""
    if first.prompt_id != second.prompt_id:
        raise EvaluationError(
            f"two tasks ask the problem {first.problem_id} in different words.",
            key="tasks",
            fix="run them one after the other: the store keeps both.",
        )


def _storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _grade_again(store: ResultStore, plans: Sequence[Plan], run: RunRecord, grading: Grading) -> None:
    """Give stored samples the verdict of a grader or gold answer that they have not met yet."""
    for plan in plans:
        problems = {problem.problem_id: problem for problem in plan.task.problems}
        for sample_id, planned, sample in store.ungraded(run.run_id, plan.evaluation):
            grading.again(sample_id, sample, plan.task.grader, problems[sample.problem_id], planned)


def _ask_second_opinions(store: ResultStore, plans: Sequence[Plan], run: RunRecord, second: SecondOpinion) -> None:
    known: dict[str, str] = {}  # by hash: the answers of a whole run are not held at once
    for evaluation in (plan.evaluation for plan in plans if plan.evaluation.second_grader == MATH_VERIFY):
        grading_ids = {problem.problem_id: problem.grading_id for problem in evaluation.problems}
        asked: list[tuple[str, int, str]] = []
        for sample in store.graded_samples(run.run_id, evaluation):
            if sample.opinion is not None or sample.error is not None:
                continue
            answer = store.texts(sample).answer
            key = content_hash([answer, sample.gold])
            if key not in known:
                known[key] = second.ask(answer, sample.gold) if answer.strip() else "wrong"
            asked.append((known[key], sample.sample_id, grading_ids[sample.problem_id]))
            if len(asked) >= _OPINIONS_PER_COMMIT:
                store.set_opinions(asked)
                asked.clear()
        store.set_opinions(asked)
