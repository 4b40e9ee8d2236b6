"""What the store holds, as values.

Exercise it: ``pytest tests/evals/ms4_evals/store``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ms4_evals.clients.base import ErrorClass
from ms4_evals.graders.base import Opinion, Verdict
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
    """A problem as one evaluation asks and grades it.

    Attributes:
        prompt: the conversation as it is asked, for people; a long one without its middle (``tasks.base.shown_prompt``).
    """

    problem_id: str
    prompt_id: str
    grading_id: str
    gold: str
    question: str
    prompt: str = ""
    facts: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One task in one mode: what is asked, how often, and the identities that say what it may be compared with.

    Attributes:
        second_grader: who gives second opinions; empty for nobody.
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
    second_grader: str
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
        thinking_tokens, answer_tokens: of the two texts under the tokenizer that all models are counted with (``token_counts``).
        finish_reason: ``stop`` or ``length``; empty after an error.
        seconds, first_token_seconds: it took, beside whatever else ran; never part of a report.
        prompt_tokens, usage_tokens, usage_thinking_tokens, cost, endpoint, attempts: as in ``SampleAnswer``.
        error, error_class: what went wrong, for a sample without an answer; it is drawn again when the evaluation goes on.
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
    prompt_tokens: int | None = None
    usage_tokens: int | None = None
    usage_thinking_tokens: int | None = None
    cost: float | None = None
    endpoint: str = ""
    attempts: int = 1
    first_token_seconds: float | None = None
    error: str | None = None
    error_class: ErrorClass | None = None


@dataclass(frozen=True)
class GradedSample:
    """A stored sample with its verdict under one grading, without its texts: ``ResultStore.texts`` has them.

    Attributes:
        opinion: the second grader's, or None where there is none.
    """

    sample_id: int
    problem_id: str
    grading_id: str
    sample_index: int
    seed: int
    gold: str
    thinking_chars: int
    answer_chars: int
    thinking_is_open: int
    thinking_tokens: int
    answer_tokens: int
    prompt_tokens: int | None
    usage_tokens: int | None
    usage_thinking_tokens: int | None
    cost: float | None
    seconds: float
    first_token_seconds: float | None
    endpoint: str
    attempts: int
    finish_reason: str
    error: str | None
    error_class: ErrorClass | None
    verdict: Verdict
    extracted: str | None
    opinion: Opinion | None


@dataclass(frozen=True)
class SampleTexts:
    """The texts of a graded sample.

    Attributes:
        details: what the grader noted (see ``Grade.details``).
    """

    thinking: str
    answer: str
    details: Mapping[str, Any] | None
