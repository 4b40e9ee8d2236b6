"""What the scripted server answers: a rule from the request alone, so that every run, however its requests fall, gets the same answers.

A question is known when one of the table's stands in the conversation; any other gets a number made of its hash. With reasoning asked for,
a thought comes first, some of whose neighbouring tokens are equal, as those of real thoughts are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STYLES = ("vllm", "sglang", "mistral", "tags")
"""Where thinking comes back: ``reasoning``, ``reasoning_content``, a list as content, tags in the content."""

_PIECES = re.compile(r"\s*\S{1,4}|\s+")


def request_key(body: Mapping[str, Any]) -> str:
    """Identity of a request, streamed or not: equal for every attempt."""
    fields = {name: value for name, value in body.items() if name not in {"stream", "stream_options"}}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def share(*parts: object) -> float:
    """A number in [0, 1) that looks random and is decided by its arguments."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big") / 2**56


@dataclass(frozen=True)
class Answer:
    """Tokens of thinking and answer; ``completion_tokens`` counts the end token too."""

    thinking: list[str]
    content: list[str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Rule:
    """How questions are answered.

    Attributes:
        table: question -> right answer; whole numbers are boxed, other text is sent as it stands.
        accuracy: share of requests with a number as the right answer that are answered right.
        thinking_words: words of a thought, more or less.
    """

    table: Mapping[str, str] = field(default_factory=dict)
    accuracy: float = 0.5
    seed: int = 0
    thinking_words: int = 12

    def answer(self, body: Mapping[str, Any]) -> Answer:
        key = request_key(body)
        text = "\n".join(str(message.get("content")) for message in body["messages"])
        # A question alone is looked up; one within instructions is looked for.
        gold = self.table.get(text) or next((answer for question, answer in self.table.items() if question in text), None)
        is_right = share(self.seed, "right", key) < self.accuracy
        if gold is None:
            said = f"\\boxed{{{int(key[:8], 16) % 1000}}}"
        elif gold.isdecimal():
            said = f"The answer is \\boxed{{{int(gold) if is_right else int(gold) + 1}}}."
        else:
            said = gold
        thinks = _effort(body) == "high"
        count = 1 + int(share(self.seed, "length", key) * 2 * self.thinking_words)
        thinking = _PIECES.findall("Let me see." + " well well" * count + f" So 11 11 {key[:6]}.") if thinks else []
        content = _PIECES.findall(said)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 30
        prompt_tokens = len(text) // 4 + 1
        # Two tags around a thought and the end are tokens too.
        tags = 2 * bool(thinking)
        total = len(thinking) + len(content) + tags + 1
        if total <= limit:
            return Answer(thinking, content, "stop", prompt_tokens, total)
        if limit < len(thinking) + tags:
            return Answer(thinking[: max(limit - 1, 0)], [], "length", prompt_tokens, limit)
        return Answer(thinking, content[: limit - len(thinking) - tags], "length", prompt_tokens, limit)


def _effort(body: Mapping[str, Any]) -> str:
    inner = body.get("chat_template_kwargs") or {}
    return body.get("reasoning_effort") or inner.get("reasoning_effort") or "none"


def whole(answer: Answer, body: Mapping[str, Any], style: str) -> dict[str, Any]:
    """The reply that is not streamed."""
    message: dict[str, Any] = {"role": "assistant"}
    for name, value in _joined(_parts(answer, style)):
        message[name] = value
    message.setdefault("content", None if answer.thinking else "")
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    return {**_head(body, "chat.completion"), "choices": [choice], "usage": usage(answer)}


def chunks(answer: Answer, body: Mapping[str, Any], style: str) -> list[dict[str, Any]]:
    """The chunks of a stream: the role, one per token, the end, and usage where it was asked for."""
    head = _head(body, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}

    made = [chunk({"role": "assistant", "content": ""})]
    made += [chunk({name: value}) for name, value in _parts(answer, style)]
    made.append(chunk({"content": None if answer.thinking and not answer.content else ""}, answer.finish_reason))
    # Mistral's API tells usage unasked.
    if style == "mistral" or (body.get("stream_options") or {}).get("include_usage"):
        made.append({**head, "choices": [], "usage": usage(answer)})
    return made


def usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _head(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_key(body)[:12]}", "object": kind, "created": 1, "model": body["model"]}


def _parts(answer: Answer, style: str) -> list[tuple[str, Any]]:
    """(field, value) of every token, in order."""
    content: list[tuple[str, Any]] = [("content", token) for token in answer.content]
    if style == "tags":
        opened = ["[THINK]", *answer.thinking] if answer.thinking else []
        closed = ["[/THINK]"] if answer.thinking and (answer.content or answer.finish_reason == "stop") else []
        return [("content", token) for token in (*opened, *closed)] + content
    if style == "mistral":
        return [("content", [{"type": "thinking", "thinking": [{"type": "text", "text": token}]}]) for token in answer.thinking] + content
    name = {"vllm": "reasoning", "sglang": "reasoning_content"}[style]
    return [(name, token) for token in answer.thinking] + content


def _joined(parts: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Fields of a whole message out of those of its tokens."""
    texts: dict[str, str] = {}
    thought: list[str] = []
    for name, value in parts:
        if isinstance(value, list):
            thought.append(value[0]["thinking"][0]["text"])
        else:
            texts[name] = texts.get(name, "") + value
    if thought:
        block = {"type": "thinking", "thinking": [{"type": "text", "text": "".join(thought)}]}
        texts_part = [{"type": "text", "text": texts["content"]}] if "content" in texts else []
        return [("content", [block, *texts_part])]
    return list(texts.items())
