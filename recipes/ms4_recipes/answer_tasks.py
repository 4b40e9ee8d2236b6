"""Evaluation beside training: tasks answered by the model of the moment, in the process that trains it.

The inference engine runs the very modules that are trained, adapter and all: nothing is saved, loaded, merged or copied. Samples go to a
results store, as those of ``ms4 eval run`` do; a run that is resumed finds those of a step that it had evaluated before. Where a metric is
named for it, the best model is kept. On several ranks all of them generate; rank 0 alone has store, sandbox and judge, and decides.
Exercise it: ``pytest tests/recipes/ms4_recipes/test_answer_tasks.py``; on ranks: ``test_answer_tasks_ranks.py`` beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ms4_evals.clients.engine import EngineClient
from ms4_evals.graders.base import VERDICTS
from ms4_evals.identity import file_hash
from ms4_evals.report import build_report
from ms4_evals.resources import Resources
from ms4_evals.runner import Plan, make_plans, run_evaluations
from ms4_evals.statistics.summary import LENGTHS
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_recipes.best_model import BestModel
from ms4_recipes.evaluate import flat_metrics, require_usable_store
from ms4_recipes.evaluate_ranks import Alive
from ms4_train.chat import ChatTokenizer
from ms4_train.config.eval_tasks import TrainingEvaluation
from ms4_train.config.schema import SftRun
from ms4_train.errors import StoppedError
from ms4_train.inference.mesh_engine import EngineRanks
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import Mesh, progress

_LOG = logging.getLogger("ms4_train")
_CONFIDENCE = 0.95
_RESAMPLES = 2000
_LOGGED = ("/score", "/high_minus_none", "/thinking_tokens", "/answer_tokens")


class TaskEvaluation:
    """Lets a model answer tasks; called with the number of optimizer steps done, returns metrics. Made and called on all ranks at once.

    Args:
        config: the whole run.
        section: which tasks, and how.
        model: that is trained.
        tokenizer: of the model.
        run: what names the run (see ``ms4_train.checkpoint.identity``).
        mesh: of the run.

    Attributes:
        save_best: writes the model of the moment below a folder, on all ranks at once; the run sets it once it holds the weights.
        whole_weights: the training engine's; the run sets it likewise.
        should_stop: asked on every rank after each step of the engine. Once it says yes anywhere, drawing ends: what is finished is
            stored, the rest not drawn, and there are no metrics.

    Raises:
        ConfigError: a best model by a metric that there is not.
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
        mesh: Mesh,
    ) -> None:
        self._config = config
        self._section = section
        self._model = model
        self._tokenizer = tokenizer
        self._run = run
        self._mesh = mesh
        self._ranks = EngineRanks(model, tokenizer, mesh)
        self._resources: Resources | None = None
        self._plans: list[Plan] = []
        self._best: BestModel | None = None
        self._store = Path(section.store or Path(config.output_dir) / "results.sqlite")
        self.save_best: Callable[[Path], object] | None = None
        self.whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext
        self._ranks.lead(self._open)

    @property
    def should_stop(self) -> Callable[[], bool]:
        """See the class."""
        return self._ranks.should_stop

    @should_stop.setter
    def should_stop(self, asks: Callable[[], bool]) -> None:
        self._ranks.should_stop = asks

    def __call__(self, done: int) -> dict[str, float]:
        """Scores and lengths as ``eval/arithmetic_digits_6/high/score`` and the like, on every rank; none where it was stopped."""
        progress.at("generation")
        with self.whole_weights():
            found = self._ranks.lead(lambda: self._evaluate(done))
        if found["is_best"] and self.save_best is not None:
            progress.at("export")
            self.save_best(_best_folder(self._config))
            if self._best is not None:
                self._best.record(done, found["metrics"])
        return found["logged"]

    def close(self) -> None:
        """Let go of sandbox and judge."""
        if self._resources is not None:
            self._resources.close()

    def _open(self) -> None:
        """What rank 0 alone has."""
        section = self._section
        self._resources = Resources(section.sandbox, section.judge)
        self._plans = make_plans(build_tasks(section.tasks, self._resources), section.modes)
        self._best = self._make_best()
        require_usable_store(self._store)

    def _evaluate(self, done: int) -> dict[str, Any]:
        """Draw, grade and score; ``logged`` metrics, all ``metrics``, and whether this model ``is_best``. On rank 0 only."""
        section, resources = self._section, self._resources
        assert resources is not None
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
            ranks=self._ranks,
        )
        with ResultStore.open(self._store) as store:
            try:
                run_evaluations(
                    client,
                    store,
                    self._plans,
                    record,
                    config=section.model_dump(mode="json", exclude={"store"}),
                    progress=Alive(),
                    workers=resources.workers,
                    should_stop=lambda: self.should_stop(),
                )
            except StoppedError as stopped:
                _LOG.warning("evaluation after step %d: %s", done, stopped.message)
                return {"logged": {}, "metrics": {}, "is_best": False}
            evaluations = [plan.evaluation for plan in self._plans]
            report = build_report(store, record, evaluations, confidence=_CONFIDENCE, resamples=_RESAMPLES, allow_errors=True)
            metrics = flat_metrics(report)
        # The store has everything; in a log of training these are enough.
        logged = {key: value for key, value in metrics.items() if key.endswith(_LOGGED)}
        is_best = self._best is not None and self.save_best is not None and self._best.is_best(done, metrics)
        best_step = done if is_best else self._best.best.step if self._best is not None and self._best.best is not None else None
        if best_step is not None:
            logged["eval/best_step"] = best_step
        return {"logged": logged, "metrics": metrics, "is_best": is_best}

    def _make_best(self) -> BestModel | None:
        section = self._section
        if section.metric_for_best_model is None:
            return None
        names = [f"{plan.evaluation.task}/{plan.evaluation.mode}" for plan in self._plans]
        known = [f"{name}/{metric}" for name in names for metric in ("score", *LENGTHS, *VERDICTS)]
        if len({plan.evaluation.mode for plan in self._plans}) > 1:
            known += [f"{plan.evaluation.task}/high_minus_none" for plan in self._plans]
        return BestModel(
            _best_folder(self._config), section.metric_for_best_model, greater_is_better=section.greater_is_better, known=known
        )


def _best_folder(config: SftRun) -> Path:
    return Path(config.output_dir) / "best"
