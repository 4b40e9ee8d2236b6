"""Evaluation beside training: tasks answered by the model of the moment, in the process that trains it.

The inference engine runs the very modules that are trained, adapter and all: nothing is saved, loaded, merged or copied. Samples go to a
results store, as those of ``ms4 eval run`` do; a run that is resumed finds those of a step that it had evaluated before. Where a metric is
named for it, the best model is kept.
Exercise it: ``pytest tests/recipes/ms4_recipes/test_answer_tasks.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ms4_evals.clients.engine import EngineClient
from ms4_evals.graders.base import VERDICTS
from ms4_evals.identity import file_hash
from ms4_evals.progress import Progress
from ms4_evals.report import build_report
from ms4_evals.resources import Resources
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.statistics.summary import LENGTHS
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_recipes.best_model import BestModel
from ms4_recipes.evaluate import flat_metrics, require_usable_store
from ms4_train.chat import ChatTokenizer
from ms4_train.config.eval_tasks import TrainingEvaluation
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral4ForCausalLM

_CONFIDENCE = 0.95
_RESAMPLES = 2000
_LOGGED = ("/score", "/high_minus_none", "/thinking_tokens", "/answer_tokens")


class TaskEvaluation:
    """Lets a model answer tasks; called with the number of optimizer steps done, returns metrics.

    Args:
        config: the whole run.
        section: which tasks, and how.
        model: that is trained.
        tokenizer: of the model.
        run: what names the run (see ``ms4_train.checkpoint.identity``).
        world_size: ranks of the run.

    Raises:
        ConfigError: several ranks, or a best model by a metric that there is not.
        EvaluationError: a task, the sandbox, the judge or the store cannot be used.
    """

    def __init__(
        self,
        config: SftRun,
        section: TrainingEvaluation,
        model: Mistral4ForCausalLM,
        tokenizer: ChatTokenizer,
        *,
        run: str,
        world_size: int,
    ) -> None:
        if world_size > 1:
            raise ConfigError(
                f"runs on one rank, this run has {world_size}.",
                key="evaluation",
                fix="leave it out, and evaluate the result with `ms4 eval run`.",
            )
        self._config = config
        self._section = section
        self._model = model
        self._tokenizer = tokenizer
        self._run = run
        self._resources = Resources(section.sandbox, section.judge)
        self._plans = make_plans(build_tasks(section.tasks, self._resources), section.modes)
        self._best = self._make_best()
        self.save_best: Callable[[Path], object] | None = None
        """Writes the model of the moment below a folder; the run sets it once it holds the weights."""
        self._store = Path(section.store or Path(config.output_dir) / "results.sqlite")
        require_usable_store(self._store)

    def __call__(self, done: int) -> dict[str, float]:
        """Scores and lengths as ``eval/arithmetic_digits_6/high/score`` and the like."""
        section = self._section
        identity = {
            "run": self._run,
            "step": done,
            "tokenizer": file_hash(self._tokenizer.path),
            "dtype": self._config.model.dtype,
            "softmax_scale": self._model.config.softmax_scale,
        }
        record = RunRecord(label=f"{Path(self._config.output_dir).name}, step {done}", model=identity, seed=section.seed)
        client = EngineClient(
            self._model,
            self._tokenizer,
            identity=identity,
            max_batch_size=section.engine.max_batch_size,
            max_context=section.engine.max_context,
        )
        with ResultStore.open(self._store) as store:
            run_evaluations(
                client,
                store,
                self._plans,
                record,
                config=section.model_dump(mode="json", exclude={"store"}),
                progress=Progress(),
                workers=self._resources.workers,
            )
            evaluations = [plan.evaluation for plan in self._plans]
            report = build_report(store, record, evaluations, confidence=_CONFIDENCE, resamples=_RESAMPLES, allow_errors=True)
            metrics = flat_metrics(report)
        # The store has everything; in a log of training these are enough.
        logged = {key: value for key, value in metrics.items() if key.endswith(_LOGGED)}
        if self._best is not None and self.save_best is not None:
            self._best.offer(done, metrics, self.save_best)
            if self._best.best is not None:
                logged["eval/best_step"] = self._best.best.step
        return logged

    def close(self) -> None:
        """Let go of sandbox and judge."""
        self._resources.close()

    def _make_best(self) -> BestModel | None:
        section = self._section
        if section.metric_for_best_model is None:
            return None
        names = [f"{plan.evaluation.task}/{plan.evaluation.mode}" for plan in self._plans]
        known = [f"{name}/{metric}" for name in names for metric in ("score", *LENGTHS, *VERDICTS)]
        if len({plan.evaluation.mode for plan in self._plans}) > 1:
            known += [f"{plan.evaluation.task}/high_minus_none" for plan in self._plans]
        folder = Path(self._config.output_dir) / "best"
        return BestModel(folder, section.metric_for_best_model, greater_is_better=section.greater_is_better, known=known)
