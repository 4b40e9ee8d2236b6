"""What goes into the engine and what comes out: requests, completions, and the events between them.

Everything is checked when it is made, so the engine meets no bad value in the middle of a batch. Sampling parameters have a file of their
own, ``sampling_params``. Exercise it: ``pytest tests/ms4_train/inference/test_request.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ms4_train.errors import EngineError
from ms4_train.inference.sampling_params import SamplingParams, is_integer
from ms4_train.model.images import ImageBatch

MAX_SAMPLES = 1024
FinishReason = Literal["stop", "length", "cancelled", "error"]
ThinkingState = Literal["none", "open", "closed", "forced"]
"""Of an answer: no thought, one that is still open (at the end: unterminated), one that the model closed, one that its budget closed."""


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to answer.

    Args:
        request_id: the caller's name for it, unique among the requests that the engine holds.
        prompt_ids: tokens of the prompt, ending where the answer begins.
        sampling: how its tokens are chosen.
        images: what the image tokens of the prompt stand for, in their order.
        n: answers to the same prompt, which is computed once. Answer 0 has the request's seed, the others seeds made from it.
        adapter: name of a loaded adapter; None: the model as it stands, with the adapters that act on it.
        priority: smaller starts first; equal ones in the order they came.

    Raises:
        EngineError: an empty prompt, ids that are not integers of 0 or more, or n out of range.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    images: ImageBatch | None = None
    n: int = 1
    adapter: str | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise EngineError("the prompt holds no token.", key=self.request_id, fix="a chat prompt holds at least the begin token.")
        if not isinstance(self.prompt_ids, tuple) or not all(is_integer(token_id) and token_id >= 0 for token_id in self.prompt_ids):
            raise EngineError("the prompt is not a tuple of token ids.", key=self.request_id, fix="encode the text first.")
        if not is_integer(self.n) or not 1 <= self.n <= MAX_SAMPLES:
            raise EngineError(f"{self.n!r} is not an integer from 1 to {MAX_SAMPLES}.", key="n", fix="ask for at least one answer.")


class TokenLogprobs(NamedTuple):
    """How likely the model found one token, before temperature, penalties and constraints.

    Attributes:
        token_id: of a prompt, or chosen.
        logprob: its natural logarithm of probability.
        rank: how many tokens are at least as likely, itself included; 1 is the most likely.
        top: the most likely tokens with their logprobs, by falling probability, lower id first on a tie; as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass
class Completion:
    """One finished answer.

    Attributes:
        request_id: of the request.
        index: which of the request's n answers.
        token_ids: the answer, without its end token, stop token or stop text. Where a stop text begins inside a token, the text before it
            is encoded again, so that the ids decode to exactly the text before the stop text.
        finish_reason: "stop" (end token, stop token, stop text, or the end of a constraint), "length" (max_tokens reached), "cancelled",
            or "error".
        stop_reason: None for the model's end token and for "length"; else the stop text, or the stop token's id as text.
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them came out of the prefix cache when the answer began.
        generated_tokens: tokens that were chosen, end and stop tokens included.
        seconds: from the start of its prompt's computation to its last token, in the company of whatever shared the batch.
        queue_seconds: from its arrival to that start.
        first_token_seconds: from its arrival to its first token.
        thinking: what became of the thought; "open" is an unterminated one, "forced" one that the thinking budget closed.
        logprobs: of every generated token (end and stop tokens included), where asked for.
        prompt_logprobs: of every prompt token but the first, which nothing comes before (None), where asked for.
        error: why there is no answer, where ``finish_reason`` is "error".
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    index: int = 0
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    thinking: ThinkingState = "none"
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: EngineError | None = None


@dataclass(frozen=True)
class TokenEvent:
    """Tokens that are now certain to belong to an answer.

    Attributes:
        request_id, index: of the answer.
        token_ids: in order; several at once after a held-back stop text.
        logprobs: of the tokens chosen since the last event, where asked for.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class FinishEvent:
    """An answer has ended; its last tokens came in a ``TokenEvent`` before."""

    completion: Completion


Event = TokenEvent | FinishEvent


@dataclass(frozen=True)
class Progress:
    """Where a call of the engine stands after a step.

    Attributes:
        finished, running, waiting: answers.
        generated_tokens: chosen so far, over all requests of the call.
        prompt_tokens: prompt tokens computed so far.
        steps: engine steps so far.
        cache_bytes: bytes of the cache blocks in use now.
        seconds: since the call began.
    """

    finished: int
    running: int
    waiting: int
    generated_tokens: int
    prompt_tokens: int
    steps: int
    cache_bytes: int
    seconds: float


@dataclass
class EngineStats:
    """Counters of an engine since it was made, for metrics; gauges are of now.

    Attributes:
        prompt_tokens: computed, or found in the prefix cache.
        cached_tokens: found in the prefix cache.
        generated_tokens: chosen.
        preemptions: running sequences that gave up their blocks and began again.
        steps: engine steps.
        finished: answers by finish reason.
        forced_thoughts: thoughts that a budget closed.
        running, waiting: answers now.
        blocks_used, blocks_cached, blocks_total: cache blocks that running answers hold, that only the prefix cache holds, and all.
        bytes_per_block: in the latent cache, all layers.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    forced_thoughts: int = 0
    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_total: int = 0
    bytes_per_block: int = 0
