"""Which trackers a run has, from its ``tracking:`` section.

Exercise it: ``pytest tests/ms4_train/tracking/test_factory.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ms4_train.config.schema import TrackingSection
from ms4_train.tracking.base import Tracker, Trackers
from ms4_train.tracking.console import ConsoleTracker
from ms4_train.tracking.jsonl import JsonlTracker
from ms4_train.tracking.wandb_run import WandbTracker


def make_trackers(
    section: TrackingSection,
    output_dir: Path,
    config: dict[str, Any],
    *,
    total_steps: int,
    step: int = 0,
    resumed: dict[str, Any] | None = None,
    go_on: bool = False,
) -> Trackers:
    """Trackers of the main rank: the metrics file always, W&B and the console where asked for. Other ranks use ``Trackers()``.

    Args:
        section: what the user asked for.
        output_dir: where metrics.jsonl and W&B's folder lie.
        config: the whole run's configuration, for W&B.
        total_steps: length of the run.
        step: steps that a resumed run has done.
        resumed: the merged ``state()`` from the checkpoint.
        go_on: whether a full or failing disk is only warned about while the run goes on; the file must be whole at its end.

    Raises:
        StorageError: the metrics file cannot be written.
        MissingDependencyError: W&B was asked for and is not installed.
        TrainingError: W&B was asked for and does not start.
    """
    trackers: list[Tracker] = [JsonlTracker(output_dir, step=step, resumed=resumed, go_on=go_on)]
    if section.wandb.mode != "disabled":
        trackers.append(WandbTracker(section.wandb, output_dir, config, resumed=resumed))
    if section.console:  # last, so that its bar starts when everything that may fail has started
        trackers.append(ConsoleTracker(total_steps, step=step))
    return Trackers(trackers)
