"""The configuration of an evaluation run: ``recipe: eval``.

Exercise it: ``pytest tests/ms4_train/config``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ms4_train.config.eval_tasks import AimeTask, ArithmeticTask, EngineSection, ModeSampling, ModesSection, Task
from ms4_train.config.schema import ModelSection, TrackingSection
from ms4_train.config.section import Section

__all__ = ["AimeTask", "ArithmeticTask", "EngineSection", "EvalRun", "ModeSampling", "ModesSection", "Task"]


class EvalRun(Section):
    """An evaluation: ``recipe: eval``."""

    recipe: Literal["eval"]
    store: str = Field("results.sqlite", description="SQLite file; a run that was interrupted goes on from it.")
    label: str | None = Field(default=None, description="Name of the row on the leaderboard; default: name of the model folder.")
    seed: int = Field(0, ge=0, lt=2**31)
    model: ModelSection
    tasks: list[Task] = Field(min_length=1)
    modes: ModesSection = ModesSection()
    engine: EngineSection = EngineSection()
    tracking: TrackingSection = TrackingSection()
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    bootstrap_samples: PositiveInt = 10000
