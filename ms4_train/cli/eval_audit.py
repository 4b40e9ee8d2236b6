"""``ms4 eval audit``: how far a judge's verdicts can be trusted, where there is something to hold against them.

Exercise it: ``ms4 eval audit --help``, or ``pytest tests/ms4_train/cli/test_eval_audit.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ms4_train.errors import ConfigError, EvaluationError

if TYPE_CHECKING:
    from ms4_evals.store.records import Evaluation, GradedSample, RunRecord
    from ms4_evals.store.results import ResultStore
    from ms4_train.config.evaluation import EvalRun

app = typer.Typer()

AUDIT_EXAMPLES = """
Examples:

  ms4 eval audit results.sqlite

  ms4 eval audit results.sqlite --run tuned --again configs/eval/lcr.yaml --share 0.2
"""


@app.command("audit", epilog=AUDIT_EXAMPLES)
def audit(
    store: Annotated[Path, typer.Argument(help="SQLite file that `ms4 eval run` wrote.", show_default=False)],
    run: Annotated[str | None, typer.Option("--run", help="Label of a run, or the start of its id.", show_default=False)] = None,
    again: Annotated[
        Path | None, typer.Option("--again", help="Run file whose judge is asked again about a share of the answers.", show_default=False)
    ] = None,
    share: Annotated[float, typer.Option("--share", min=0.0, max=1.0, help="Share of the answers for --again.")] = 0.1,
) -> None:
    """Compare a judge with the deterministic check of numbers, and with itself."""
    from ms4_evals.compare import find_run
    from ms4_evals.store.results import ResultStore

    with ResultStore.read(store) as reader:
        record = find_run(reader, run)
        judged = [entry for entry in reader.evaluations(record.run_id) if entry.grader_id.startswith("lcr-judge/")]
        if not judged:
            raise EvaluationError("no judge has graded this run.", file=store, fix="audit a run of the task lcr.")
        for evaluation in judged:
            samples = reader.graded_samples(record.run_id, evaluation)
            typer.echo(f"{evaluation.title}, mode {evaluation.mode}: {evaluation.grader_id}")
            for line in _agreement_lines(reader, samples):
                typer.echo(f"  {line}")
        if again is not None:
            _judge_again(reader, record, judged, again, share)


def _agreement_lines(reader: ResultStore, samples: list[GradedSample]) -> list[str]:
    from ms4_evals.graders.judge.audit import agreement, summarise_replies

    return [
        *agreement(samples).lines(),
        *summarise_replies((sample.sample_id, reader.texts(sample).details) for sample in samples).lines(),
    ]


def _judge_again(reader: ResultStore, record: RunRecord, judged: list[Evaluation], file: Path, share: float) -> None:
    from ms4_evals.graders.judge.audit import judge_again
    from ms4_evals.graders.judge.grader import JudgeGrader
    from ms4_evals.resources import Resources
    from ms4_evals.tasks.base import TaskProblem

    config = _eval_run(file)
    with Resources(judge=config.judge) as resources:
        for evaluation in judged:
            grader = resources.judge_grader("1.1" if evaluation.grader_id.startswith("lcr-judge/1.1") else "1.0")
            assert isinstance(grader, JudgeGrader)
            if grader.grader_id != evaluation.grader_id:
                raise EvaluationError(
                    f"the file's judge is not the one of the run: {grader.grader_id} against {evaluation.grader_id}.",
                    file=file,
                    key="judge",
                    fix="name the judge that graded the run.",
                )
            problems = {item.problem_id: TaskProblem(item.problem_id, item.question, item.gold, item.facts) for item in evaluation.problems}
            found = judge_again(
                grader,
                reader.graded_samples(record.run_id, evaluation),
                lambda sample, problems=problems: problems[sample.problem_id],
                lambda sample: reader.texts(sample).answer,
                share=share,
            )
            for line in found.lines():
                typer.echo(f"  {evaluation.mode}: {line}")


def _eval_run(file: Path) -> EvalRun:
    from ms4_train.config import load_run
    from ms4_train.config.evaluation import EvalRun

    config = load_run(file)
    if not isinstance(config, EvalRun):
        raise ConfigError(f"recipe {config.recipe} has no judge.", file=file, key="recipe", fix="name a file with recipe: eval.")
    return config
