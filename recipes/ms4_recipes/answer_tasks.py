"""Evaluation beside training: tasks answered by the model of the moment, in the process that trains it.

The inference engine runs the very modules that are trained, adapter and all: nothing is saved, loaded, merged or copied. Samples go to a
results store, as those of ``ms4 eval`` do; a run that is resumed finds those of a step that it had evaluated before.
Exercise it: ``pytest tests/recipes/ms4_recipes/test_answer_tasks.py``.
"""

from __future__ import annotations

from pathlib import Path

from ms4_evals.clients.engine import EngineClient
from ms4_evals.identity import file_hash
from ms4_evals.progress import Progress
from ms4_evals.report import build_report
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
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
        ConfigError: several ranks.
        EvaluationError: a task or the store cannot be used.
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
                fix="leave it out, and evaluate the result with `ms4 eval`.",
            )
        self._config = config
        self._section = section
        self._model = model
        self._tokenizer = tokenizer
        self._run = run
        self._plans = make_plans(build_tasks(section.tasks), section.modes)
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
                client, store, self._plans, record, config=section.model_dump(mode="json", exclude={"store"}), progress=Progress()
            )
            evaluations = [plan.evaluation for plan in self._plans]
            metrics = flat_metrics(build_report(store, record, evaluations, confidence=_CONFIDENCE, resamples=_RESAMPLES))
        # The store has everything; in a log of training these are enough.
        return {key: value for key, value in metrics.items() if key.endswith(_LOGGED)}
