"""What the store holds, as values.

Exercise it: ``pytest tests/evals/ms4_evals/store``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms4_evals.graders.integer import Verdict
from ms4_evals.identity import content_hash
from ms4_evals.tasks.base import Mode


@dataclass(frozen=True)
class RunRecord:
    """A model under test, as far as it shapes its answers.

    Attributes:
        label: what people call it; not part of its identity.
        model: JSON values that identify the model (fingerprints of weights, adapter, tokenizer; number format).
        seed: from which every sample's own seed is derived.
    """

    label: str
    model: Mapping[str, Any]
    seed: int

    @property
    def run_id(self) -> str:
        """Identity of model and seed: samples of one run id may be mixed freely."""
        return content_hash(["run", dict(self.model), self.seed])


@dataclass(frozen=True)
class PlannedProblem:
    """A problem as one evaluation asks and grades it."""

    problem_id: str
    prompt_id: str
    grading_id: str
    gold: str
    question: str


@dataclass(frozen=True)
class Evaluation:
    """One task in one mode: what is asked, how often, and the identities that say what it may be compared with.

    Attributes:
        samples: answers per problem.
        sampling: temperature, top_p and max_tokens.
    """

    task: str
    title: str
    mode: Mode
    board_id: str
    column_id: str
    sampling_id: str
    sampling: Mapping[str, float | int]
    grader_id: str
    uses_second_opinion: bool
    samples: int
    problems: tuple[PlannedProblem, ...]

    @property
    def planned(self) -> int:
        """Samples of the whole evaluation."""
        return self.samples * len(self.problems)


@dataclass(frozen=True)
class Sample:
    """One answer of a model, before any verdict.

    Attributes:
        prompt_hash: of what the model really read, after the chat template (token ids, for the engine).
        thinking_is_open: 1 when the thinking never closed (the final answer is then empty), else 0.
        finish_reason: ``stop`` or ``length``; empty after an error.
        seconds: it took, beside whatever else ran; never part of a report.
        error: what went wrong, for a sample without an answer; it is drawn again when the evaluation goes on.
    """

    problem_id: str
    prompt_id: str
    mode: Mode
    sampling_id: str
    sample_index: int
    seed: int
    prompt_hash: str
    thinking: str
    answer: str
    thinking_is_open: int
    thinking_tokens: int
    answer_tokens: int
    finish_reason: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class GradedSample:
    """A stored sample with its verdict under one grading.

    Attributes:
        opinion: math-verify's (``correct``, ``wrong``, ``failed``), or None where it was not asked.
    """

    sample_id: int
    problem_id: str
    sample_index: int
    gold: str
    thinking: str
    answer: str
    thinking_is_open: int
    thinking_tokens: int
    answer_tokens: int
    finish_reason: str
    error: str | None
    verdict: Verdict
    extracted: str | None
    opinion: str | None
