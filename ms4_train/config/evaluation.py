"""The configuration of an evaluation run: ``recipe: eval``.

Exercise it: ``pytest tests/ms4_train/config``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ms4_train.config.endpoint import EndpointSection, JudgeSection
from ms4_train.config.eval_tasks import (
    AimeTask,
    ArithmeticTask,
    EngineSection,
    LcrTask,
    LiveCodeBenchTask,
    ModeSampling,
    ModesSection,
    SandboxSection,
    Task,
)
from ms4_train.config.schema import ModelSection, TrackingSection
from ms4_train.config.section import Section

__all__ = [
    "AimeTask",
    "ArithmeticTask",
    "EngineSection",
    "EvalParallelSection",
    "EvalRun",
    "LcrTask",
    "LiveCodeBenchTask",
    "ModeSampling",
    "ModesSection",
    "Task",
]


class EvalParallelSection(Section):
    """How the model is laid over processes. One process needs none of it."""

    expert_parallel_size: PositiveInt = Field(default=1, description="Ranks that share out the experts of each layer.")
    timeout_seconds: PositiveInt = Field(
        default=1800, description="A rank that gets no further for this long counts as hung, and ends the run."
    )


class EvalRun(Section):
    """An evaluation: ``recipe: eval``."""

    recipe: Literal["eval"]
    store: str = Field("results.sqlite", description="SQLite file; a run that was interrupted goes on from it.")
    label: str | None = Field(default=None, description="Name of the row on the leaderboard; default: name of the model folder.")
    seed: int = Field(0, ge=0, lt=2**31)
    model: ModelSection | None = Field(default=None, description="Model to load here and run on the engine; instead of endpoint.")
    endpoint: EndpointSection | None = Field(default=None, description="Server that answers for the model; instead of model.")
    tasks: list[Task] = Field(min_length=1)
    modes: ModesSection = ModesSection()
    engine: EngineSection = EngineSection()
    parallel: EvalParallelSection = Field(EvalParallelSection(), description="For a model on several processes; it changes no answer.")
    judge: JudgeSection | None = Field(default=None, description="For lcr: the model that compares answers with the official ones.")
    sandbox: SandboxSection = SandboxSection()
    allow_errors: bool = Field(
        default=False, description="Give scores although samples ended in errors, leaving those out; the report says how many."
    )
    tracking: TrackingSection = TrackingSection()
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    bootstrap_samples: PositiveInt = 10000

    @model_validator(mode="after")
    def _needs_one_model(self) -> Self:
        if self.model is not None and self.endpoint is not None:
            raise ValueError("both model and endpoint are there; take one out: model is run here on the engine, endpoint is a server")
        if self.model is None and self.endpoint is None:
            raise ValueError("there is no model; add model: {path: ...}, run here, or endpoint: {servers: [{base_url: ...}]}, a server")
        return self
