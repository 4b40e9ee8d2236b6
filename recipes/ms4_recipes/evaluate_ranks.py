"""An evaluation whose model lies on several processes. ``ms4 eval run FILE.yaml --nproc N``, or the same under torchrun, runs it.

Every rank reads its experts and computes; rank 0 alone has tasks, sandbox, judge and store, and prints. What fails on one rank before the
drawing is raised by all, and so is another configuration or another model on one of them. Samples and report are those of one process.
Exercise it: ``pytest tests/recipes/ms4_recipes/test_evaluate_ranks.py``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console

from ms4_evals.clients.embedded import default_label, load_model_under_test
from ms4_evals.clients.engine import EngineClient
from ms4_evals.progress import Progress
from ms4_evals.resources import Resources
from ms4_evals.runner import Plan
from ms4_recipes.evaluate import draw, prepare, tell
from ms4_train.config.evaluation import EvalRun
from ms4_train.config.schema import ParallelSection
from ms4_train.inference.mesh_engine import EngineRanks
from ms4_train.parallel import init_mesh, progress
from ms4_train.parallel.together import everyone, main_only
from ms4_train.parallel.watch import watched
from ms4_train.training.same_start import require_same_model, require_same_start


class Alive(Progress):
    """A display that tells the watch over the ranks, too, that rank 0 gets on while it waits for verdicts."""

    def graded(self) -> None:
        """One more verdict has come."""
        super().graded()
        progress.at("generation")


def run(config: EvalRun) -> Path:
    """See ``evaluate.run``; called on every rank.

    Raises:
        MS4Error: as there.
    """
    assert config.model is not None
    section = config.model
    parallel = config.parallel
    mesh = init_mesh(
        ParallelSection(expert_parallel_size=parallel.expert_parallel_size, zero_stage=0, timeout_seconds=parallel.timeout_seconds)
    )
    console = Console(quiet=not mesh.is_main)
    resources = Resources(config.sandbox, config.judge)
    plans: list[Plan] = []
    try:
        with watched(mesh, timeout_seconds=parallel.timeout_seconds), contextlib.closing(resources):
            require_same_start(mesh, config)
            main_only(mesh, lambda: plans.extend(prepare(config, resources, console)))
            progress.at("load")
            model, tokenizer, identity = everyone(mesh, lambda: load_model_under_test(section, console, mesh=mesh))
            require_same_model(mesh, identity)
            ranks = EngineRanks(model, tokenizer, mesh)

            def work() -> str:
                client = EngineClient(
                    model,
                    tokenizer,
                    identity=identity,
                    max_batch_size=config.engine.max_batch_size,
                    max_context=config.engine.max_context,
                    ranks=ranks,
                )
                label = config.label or default_label(section)
                return str(tell(config, draw(config, client, label, plans, resources, console, Alive(console)), console))

            return Path(ranks.lead(work))
    finally:
        mesh.close()
