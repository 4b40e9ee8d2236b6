"""The kinds of servers: how each is asked for an answer, and where it puts it. Sources are in ``facts.py``.

Two engines that are given the same temperature and top_p still sample differently when one of them adds its own top-k, or takes them in
another order. So each kind is also sent what switches its own additions off.
Exercise it: ``pytest tests/evals/ms4_evals/clients/servers/test_kinds.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ms4_evals.clients.servers.detection import detect_name
from ms4_evals.clients.servers.facts import FACTS
from ms4_evals.clients.servers.reader import AnswerReader

if TYPE_CHECKING:
    import httpx

    from ms4_evals.clients.base import SampleRequest

ReasoningPlace = Literal["reasoning_effort", "chat_template_kwargs"]


@dataclass(frozen=True)
class ServerKind:
    """One program that serves models by OpenAI's protocol.

    Attributes:
        name: as configuration files have it.
        title: for people.
        reasoning: where the mode goes. It is sent in both modes, since defaults differ.
        max_tokens_key: of the bound on thinking and answer together.
        seed_key: of the seed.
        seed_bound: seeds are taken modulo this.
        plain_sampling: keys that switch off what the server does to the distribution beside temperature and top_p.
        generation_config: the server takes sampling settings only as the text of a whole configuration of transformers.
        asks_for_usage: streams tell token counts only when ``stream_options`` asks for them; where False they do so unasked.
        reads_tags: thinking may come in the content, between tags.
        ends_with_done: its streams end with ``[DONE]``.
    """

    name: str
    title: str
    reasoning: ReasoningPlace = "reasoning_effort"
    max_tokens_key: str = "max_tokens"
    seed_key: str = "seed"
    seed_bound: int = 2**63
    plain_sampling: Mapping[str, Any] = field(default_factory=dict)
    generation_config: bool = False
    asks_for_usage: bool = True
    reads_tags: bool = True
    ends_with_done: bool = True

    def body(self, request: SampleRequest, model: str, *, stream: bool, extra_body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole JSON body of one request.

        Args:
            request: what is asked.
            model: name of the model there.
            stream: whether the answer comes as it is written.
            extra_body: laid over the body; objects key by key, and a null takes the key away.
        """
        body: dict[str, Any] = {"model": model, "messages": [dict(message) for message in request.messages]}
        body |= self._sampling(request)
        body[self.max_tokens_key] = request.max_tokens
        body[self.seed_key] = request.seed % self.seed_bound
        effort = {"reasoning_effort": request.mode}
        body |= effort if self.reasoning == "reasoning_effort" else {self.reasoning: effort}
        body["stream"] = stream
        if stream and self.asks_for_usage:
            body["stream_options"] = {"include_usage": True}
        return _laid_over(body, extra_body)

    def _sampling(self, request: SampleRequest) -> dict[str, Any]:
        sampling: dict[str, Any] = {} if request.temperature is None else {"temperature": request.temperature}
        # Beside the greedy choice top_p says nothing, and Mistral's API refuses it there.
        if request.temperature != 0 and request.top_p is not None:
            sampling["top_p"] = request.top_p
        if self.generation_config:
            sampling["generation_config"] = json.dumps({"do_sample": request.temperature != 0, "top_k": 0})
        return sampling | dict(self.plain_sampling)

    def reader(self) -> AnswerReader:
        """For one answer."""
        return AnswerReader(reads_tags=self.reads_tags)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


_PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# Tags of thoughts are special tokens, which decoding leaves out unless told otherwise.
_WITH_TAGS = {**_PLAIN, "skip_special_tokens": False}
# Two steps and no others, in the order in which the other engines take them; llama.cpp's own order has the temperature last.
_LLAMA_CPP = {"samplers": ["temperature", "top_p"], "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}

KINDS: dict[str, ServerKind] = {
    kind.name: kind
    for kind in (
        ServerKind("vllm", "vLLM", plain_sampling=_WITH_TAGS),
        ServerKind("sglang", "SGLang", plain_sampling=_WITH_TAGS),
        # The highest 32-bit seed stands for "draw one".
        ServerKind("llama.cpp", "llama.cpp", reasoning="chat_template_kwargs", seed_bound=2**32 - 1, plain_sampling=_LLAMA_CPP),
        ServerKind("lm-studio", "LM Studio", seed_bound=2**31 - 1, plain_sampling={"top_k": 0, "repeat_penalty": 1.0}),
        ServerKind(
            "transformers",
            "transformers serve",
            reasoning="chat_template_kwargs",
            generation_config=True,
            asks_for_usage=False,
            ends_with_done=False,
        ),
        ServerKind("ms4", "ms4 serve", reads_tags=False),
        ServerKind("mistral", "Mistral's API", seed_key="random_seed", seed_bound=2**31, asks_for_usage=False, reads_tags=False),
        ServerKind("openai", "OpenAI's API", max_tokens_key="max_completion_tokens"),
        # Numbers above may be rounded by a parser that holds them as doubles, and then be no 64-bit integer any more.
        ServerKind("compatible", "any other", seed_bound=2**53),
    )
}


async def detect_kind(client: httpx.AsyncClient, base_url: str, headers: Mapping[str, str]) -> ServerKind:
    """The kind of the server at an address, by what it says about itself; ``compatible`` where nothing tells.

    Raises:
        httpx.HTTPError: it cannot be reached.
    """
    return KINDS[await detect_name(client, base_url, headers)]


def describe_kinds() -> list[tuple[str, ...]]:
    """The table for people: names of the columns, then one row per kind."""
    return [("kind", "how it is asked, and what comes back"), *((kind.name, _description(kind)) for kind in KINDS.values())]


def _description(kind: ServerKind) -> str:
    facts = FACTS[kind.name]
    effort = "reasoning_effort" if kind.reasoning == "reasoning_effort" else f"{kind.reasoning}: {{reasoning_effort: ...}}"
    sent = [kind.max_tokens_key, f"{kind.seed_key} (below {_bound(kind.seed_bound)})"]
    sent += [f"{name}: {json.dumps(value)}" for name, value in kind.plain_sampling.items()]
    if kind.generation_config:
        sent.append("generation_config (do_sample, top_k 0)")
    lines = {
        kind.title: f"asked to reason by {effort}",
        "thinking comes in": facts.thinking,
        "tokens are told": facts.tokens,
        "also sent": ", ".join(sent),
        "to know": facts.know,
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


def _bound(bound: int) -> str:
    return f"2^{bound.bit_length() - 1}" if bound & (bound - 1) == 0 else f"2^{bound.bit_length()} - 1"
