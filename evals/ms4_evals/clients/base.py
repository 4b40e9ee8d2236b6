"""What a client is: something that answers sample requests, in any order, and hands each answer over as soon as it is there.

Exercise it: ``pytest tests/evals/ms4_evals/clients``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ms4_evals.tasks.base import Message, Mode

ErrorClass = Literal["connection", "timeout", "rate-limit", "server", "bad-response", "refused", "engine"]
"""Why there is no answer. ``bad-response``: what came was cut, garbled or of another model; ``refused``: the server would not take it."""


@dataclass(frozen=True)
class SampleRequest:
    """One answer to draw.

    Attributes:
        prompt: builds the messages; called when the request is sent, so that a thousand prompts of 100,000 tokens are never held at once.
        max_tokens: of thinking and final answer together, the end token included.
        seed: in [0, 2**63); with the prompt and the sampling it decides the answer.
    """

    problem_id: str
    mode: Mode
    sample_index: int
    prompt: Callable[[], list[Message]]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, built anew."""
        return tuple(self.prompt())

    @property
    def request_id(self) -> str:
        """Unique within one evaluation run."""
        return f"{self.problem_id} {self.mode} {self.sample_index}"


@dataclass(frozen=True)
class SampleAnswer:
    """What came back.

    Attributes:
        prompt_hash: SHA-256 of what the model read: token ids for the engine, messages and settings for a server.
        thinking_is_open: the thinking never closed; the final answer is then empty.
        finish_reason: ``stop``, or ``length`` when ``max_tokens`` ended it; empty after an error.
        seconds: it took, from sending to the last token.
        prompt_tokens, usage_tokens, usage_thinking_tokens: read, generated, and generated as thinking, as the model's own tokenizer
            counts; None where a server does not say.
        cost: of the answer, where prices are known.
        endpoint: which server answered; empty for the engine.
        attempts: requests that it took.
        first_token_seconds: from sending to the first token, where that was seen.
        error: set when there is no answer; texts are then empty.
        error_class: of the error.
    """

    prompt_hash: str
    thinking: str
    answer: str
    thinking_is_open: bool
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


class Client(Protocol):
    """A model under test."""

    def identity(self) -> Mapping[str, Any]:
        """JSON values that identify the model and everything else that shapes its answers beside prompt, sampling and seed."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that compute the answers."""
        ...

    def answer(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Answer all requests.

        Args:
            requests: all that is wanted, so that the client can fill its batches.
            on_finish: called once per request, in the caller's thread, as soon as its answer is there.
            on_progress: called now and then with the number of tokens generated so far.

        Raises:
            MS4Error: nothing more can be answered. A failure of one request is a ``SampleAnswer`` with ``error`` instead.
        """
        ...

    def close(self) -> None:
        """Let go of connections and memory."""
        ...
