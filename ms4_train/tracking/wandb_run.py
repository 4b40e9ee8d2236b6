"""Weights & Biases. Offline mode needs neither an account nor a network; ``wandb sync`` uploads its folder later.

The run id is kept in the run state, so a resumed run goes on in the same W&B run.
Exercise it: ``pytest tests/ms4_train/tracking/test_wandb_run.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
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

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to the run."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def artifact(self, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Add files to the run as one versioned artifact; they are copied before this returns."""
        import wandb

        artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        for file in files:
            artifact.add_file(str(file), name=file.name)
        self._run.log_artifact(artifact)

    def state(self) -> dict[str, Any]:
        """The run's id."""
        return {_RUN_ID: self.run_id}

    def close(self) -> None:
        """Finish the run and wait for its files."""
        self._run.finish()
