"""Requests, sections and short waits that tests of the endpoint client share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_evals.clients.endpoint.retries import Backoff
from ms4_train.config.endpoint import EndpointSection

QUICK_WAIT = 0.01
"""First wait after a failure in tests; real runs start with half a second."""


def quick() -> Backoff:
    return Backoff(first=QUICK_WAIT, longest=0.2)


def section(*base_urls: str, **options: Any) -> EndpointSection:
    servers = [{"base_url": base_url} for base_url in base_urls]
    return EndpointSection.model_validate({"servers": servers, "kind": "vllm", "timeout": 5.0, **options})


def requests(count: int, *, question: Callable[[int], str] = "Question {}?".format, max_tokens: int = 4096) -> list[SampleRequest]:
    """Different requests in both modes."""

    def one(number: int) -> SampleRequest:
        return SampleRequest(
            problem_id=f"p/{number:04d}",
            mode="high" if number % 2 else "none",
            sample_index=0,
            prompt=lambda: [{"role": "user", "content": question(number)}],
            temperature=0.7,
            top_p=1.0,
            max_tokens=max_tokens,
            seed=number,
        )

    return [one(number) for number in range(count)]


def answers(client: EndpointClient, asked: Sequence[SampleRequest]) -> dict[str, SampleAnswer]:
    """Every answer by its request; each request must be answered once."""
    found: dict[str, SampleAnswer] = {}

    def finish(request: SampleRequest, answer: SampleAnswer) -> None:
        assert request.request_id not in found
        found[request.request_id] = answer

    client.answer(asked, finish, lambda tokens: None)
    assert set(found) == {request.request_id for request in asked}
    return found


def texts(found: dict[str, SampleAnswer]) -> dict[str, tuple[Any, ...]]:
    """What of an answer may not depend on how often it was asked for."""
    return {
        name: (one.prompt_hash, one.thinking, one.answer, one.thinking_is_open, one.finish_reason, one.prompt_tokens, one.usage_tokens)
        for name, one in found.items()
    }
