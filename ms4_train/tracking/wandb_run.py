"""Weights & Biases. Offline mode needs neither an account nor a network; ``wandb sync`` uploads its folder later.

The run id is kept in the run state, so a resumed run goes on in the same W&B run.
Exercise it: ``pytest tests/ms4_train/tracking/test_wandb_run.py``.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ms4_train.config.schema import WandbSection
from ms4_train.errors import MissingDependencyError, TrainingError
from ms4_train.tracking.base import Metrics

_RUN_ID = "wandb_run_id"


class WandbTracker:
    """One W&B run. Satisfies ``Tracker``.

    Args:
        section: mode is ``offline`` or ``online``.
        output_dir: the ``wandb`` folder is made in it.
        config: the run's configuration, shown beside its curves.
        resumed: what ``state`` gave when the checkpoint was written.

    Raises:
        MissingDependencyError: wandb is not installed.
        TrainingError: W&B cannot be reached or refuses the login (online only).
    """

    def __init__(self, section: WandbSection, output_dir: Path, config: dict[str, Any], *, resumed: dict[str, Any] | None = None) -> None:
        assert section.mode != "disabled"
        try:
            import wandb
            from wandb.errors import Error as WandbError
        except ImportError as error:
            raise MissingDependencyError(
                "wandb is not installed.", key="tracking.wandb.mode", fix="pip install wandb, or use disabled."
            ) from error
        self.run_id: str = (resumed or {}).get(_RUN_ID) or secrets.token_hex(4)
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                mode=section.mode,
                project=section.project,
                entity=section.entity,
                name=section.name,
                tags=section.tags,
                id=self.run_id,
                resume="allow",
                dir=output_dir,
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (WandbError, OSError) as error:
            fix = "log in with `wandb login`, check the network, or set tracking.wandb.mode=offline."
            raise TrainingError(f"W&B did not start ({error}).", key="tracking.wandb", fix=fix) from error

    def log(self, step: int, metrics: Metrics) -> None:
        """Add metrics to the run's history."""
        self._run.log(dict(metrics), step=step)

    def summary(self, metrics: Metrics) -> None:
        """Set the run's summary values."""
        self._run.summary.update(dict(metrics))

    def state(self) -> dict[str, Any]:
        """The run's id."""
        return {_RUN_ID: self.run_id}

    def close(self) -> None:
        """Finish the run and wait for its files."""
        self._run.finish()
