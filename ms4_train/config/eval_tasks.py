"""What an evaluation asks, how answers are sampled, and the engine's bounds: shared by evaluation runs and evaluation beside training.

Exercise it: ``pytest tests/ms4_train/config/test_eval_tasks.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ms4_train.config.section import Section


class ModeSampling(Section):
    """How answers are sampled in one reasoning mode."""

    temperature: Annotated[float, Field(ge=0, le=5)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 32768


class ModesSection(Section):
    """The reasoning modes to run. A mode set to null is left out."""

    none: ModeSampling | None = ModeSampling()
    high: ModeSampling | None = ModeSampling()


class AimeTask(Section):
    """AIME problems from local JSON lines files or a hub data set."""

    task: Literal["aime"]
    years: list[Literal[2024, 2025, 2026]] = Field(default=[2025], min_length=1)
    path: str | None = Field(default=None, description="JSON lines file, or a folder with aime24.jsonl ...; default: the hub.")
    samples: PositiveInt = Field(16, description="Answers per problem and mode.")
    limit: PositiveInt | None = Field(default=None, description="Only the first problems; the report says so.")


class ArithmeticTask(Section):
    """Generated chains of modular arithmetic with integer answers, graded as AIME is."""

    task: Literal["arithmetic"]
    kind: str = Field("digits", description="Kind of problem; `ms4 eval --list` names them.")
    problems: PositiveInt = 100
    steps: PositiveInt = Field(6, description="Operators per chain.")
    seed: int = Field(1, ge=0, description="Seed of the held-out problems.")
    samples: PositiveInt = 1


Task = Annotated[AimeTask | ArithmeticTask, Field(discriminator="task")]


class EngineSection(Section):
    """Bounds of the inference engine."""

    max_batch_size: PositiveInt = 32
    max_context: PositiveInt | None = Field(default=None, description="Tokens per request; default: what prompt and max_tokens need.")


class TrainingEvaluation(Section):
    """Tasks that are run beside training, on the weights of the moment and through the inference engine."""

    steps: PositiveInt = Field(description="Every so many optimizer steps, and after the last one.")
    tasks: list[Task] = Field(min_length=1)
    modes: ModesSection = Field(
        ModesSection(none=ModeSampling(max_tokens=2048), high=ModeSampling(max_tokens=8192)),
        description="As of evaluation runs, but shorter answers by default: a model that repeats itself would hold up training.",
    )
    engine: EngineSection = EngineSection()
    seed: int = Field(0, ge=0, lt=2**31)
    store: str | None = Field(default=None, description="SQLite file of all samples; default: results.sqlite in output_dir.")
