"""What an answer cost in tokens, in OpenAI's form, and the words for how it ended.

Exercise it: ``pytest tests/ms4_train/serving/test_usage.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ms4_train.inference.request import Completion
from ms4_train.serving.failures import engine_failure


def usage(completions: Iterable[Completion], reasoning_tokens: int | None) -> dict[str, Any]:
    """``usage`` of a response; a prompt counts once, however many answers it has.

    Args:
        completions: all of the response.
        reasoning_tokens: inside thoughts; None leaves them out, where there are no thoughts.
    """
    finished = list(completions)
    first = [completion for completion in finished if completion.index == 0]
    prompt = sum(completion.prompt_tokens for completion in first)
    generated = sum(completion.generated_tokens for completion in finished)
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(completion.cached_tokens for completion in first)},
    }
    if reasoning_tokens is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return found


def check_finished(completion: Completion) -> None:
    """Refuse a completion that is no answer.

    Raises:
        ApiError: 503: the engine failed, or the answer was cancelled.
    """
    if completion.finish_reason in ("error", "cancelled"):
        raise engine_failure(completion.error)
