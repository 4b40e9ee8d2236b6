"""Logprobs in the three forms that clients know: OpenAI's of chats, OpenAI's of completions, vLLM's of prompts.

Every generated token has an entry, those of thoughts, tool calls and the end token included: as many as ``usage`` counts.
Exercise it: ``pytest tests/ms4_train/serving/test_logprobs.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ms4_train.chat import ChatTokenizer
from ms4_train.inference.request import TokenLogprobs

IMPOSSIBLE = -9999.0
"""What stands for a probability of 0, whose logarithm JSON cannot express."""


def chat_logprobs(entries: Iterable[TokenLogprobs], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a chat choice."""
    content = [
        _token(entry.token_id, entry.logprob, tokenizer)
        | {"top_logprobs": [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    entries: Sequence[TokenLogprobs | None], ids: Sequence[int], start: int, tokenizer: ChatTokenizer, *, keep_special: bool = False
) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a completion choice.

    Args:
        entries: of the tokens; None for the first of a prompt.
        ids: the tokens.
        start: characters of the choice's text before them.
        tokenizer: spells them.
        keep_special: whether the choice's text holds control tokens, which take no room in it otherwise.
    """
    tokens = [tokenizer.token_text(token_id) for token_id in ids]
    offsets = []
    for token_id, text in zip(ids, tokens, strict=True):
        offsets.append(start)
        start += len(text) if keep_special or tokenizer.decode([token_id]) else 0
    top = [
        None if entry is None or not entry.top else {tokenizer.token_text(token_id): _finite(logprob) for token_id, logprob in entry.top}
        for entry in entries
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
        "top_logprobs": top if any(top) else None,
        "text_offset": offsets,
    }


def prompt_logprobs(entries: Sequence[TokenLogprobs | None], tokenizer: ChatTokenizer) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: of each prompt token an object from ids to logprob, rank and text; the token itself is among them."""
    found: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            found.append(None)
            continue
        top = {
            str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": tokenizer.token_text(token_id)}
            for rank, (token_id, logprob) in enumerate(entry.top, 1)
        }
        own = {"logprob": _finite(entry.logprob), "rank": entry.rank, "decoded_token": tokenizer.token_text(entry.token_id)}
        found.append({str(entry.token_id): own} | top | {str(entry.token_id): own})
    return found


def _token(token_id: int, logprob: float, tokenizer: ChatTokenizer) -> dict[str, Any]:
    return {"token": tokenizer.token_text(token_id), "logprob": _finite(logprob), "bytes": list(tokenizer.token_bytes(token_id))}


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)
