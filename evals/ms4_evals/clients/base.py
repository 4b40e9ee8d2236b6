"""What a client is: something that answers sample requests, in any order, and hands each answer over as soon as it is there.

Exercise it: ``pytest tests/evals/ms4_evals/clients``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ms4_evals.tasks.base import Message, Mode


@dataclass(frozen=True)
class SampleRequest:
    """One answer to draw.

    Attributes:
        max_tokens: of thinking and final answer together, the end token included.
        seed: in [0, 2**63); with the prompt and the sampling it decides the answer.
    """

    problem_id: str
    mode: Mode
    sample_index: int
    messages: tuple[Message, ...]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @property
    def request_id(self) -> str:
        """Unique within one evaluation run."""
        return f"{self.problem_id} {self.mode} {self.sample_index}"


@dataclass(frozen=True)
class SampleAnswer:
    """What came back.

    Attributes:
        prompt_hash: SHA-256 of what the model really read.
        thinking_is_open: the thinking never closed; the final answer is then empty.
        finish_reason: ``stop``, or ``length`` when ``max_tokens`` ended it.
        seconds: it took.
        error: set when there is no answer; the rest is then empty.
    """

    prompt_hash: str
    thinking: str
    answer: str
    thinking_is_open: bool
    thinking_tokens: int
    answer_tokens: int
    finish_reason: str
    seconds: float
    error: str | None = None


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
