"""What goes into the engine and what comes out: sampling parameters, requests, completions.

Everything is checked when it is made, so the engine meets no bad value in the middle of a batch.
Exercise it: ``pytest tests/ms4_train/inference/test_request.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ms4_train.errors import EngineError
from ms4_train.model.images import ImageBatch

MAX_SEED = 2**63 - 1
FinishReason = Literal["stop", "length"]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are chosen and when it ends.

    Args:
        temperature: divides the logits; 0 takes the most likely token (the lower id on a tie).
        top_p: sample from the smallest set of most likely tokens whose probability reaches this share.
        seed: names the answer's random numbers; the same seed gives the same answer in any company.
        max_tokens: most tokens that are generated, the end token included.
        stop: texts that end the answer; neither they nor what follows is part of it. Control tokens count by their spelling.
        stop_token_ids: token ids that end the answer besides the model's end token.

    Raises:
        EngineError: a value outside its range; ``key`` names the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not math.isfinite(self.temperature) or self.temperature < 0:
            raise EngineError(f"{self.temperature!r} is not a finite number of 0 or more.", key="temperature", fix="use 0 for greedy.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise EngineError(f"{self.top_p!r} is not above 0 and at most 1.", key="top_p", fix="use 1 to sample from all tokens.")
        if not _is_integer(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise EngineError(f"{self.seed!r} is not an integer from 0 to 2^63 - 1.", key="seed", fix="choose a seed in that range.")
        if not _is_integer(self.max_tokens) or self.max_tokens < 1:
            raise EngineError(f"{self.max_tokens!r} is not an integer of 1 or more.", key="max_tokens", fix="ask for at least one token.")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise EngineError(f"{self.stop!r} is not a tuple of non-empty texts.", key="stop", fix="pass stop=('text',).")
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or not all(_is_integer(token_id) and token_id >= 0 for token_id in ids):
            raise EngineError(f"{ids!r} is not a tuple of token ids.", key="stop_token_ids", fix="pass stop_token_ids=(2,).")


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate.

    Args:
        request_id: the caller's name for it, unique within one call.
        prompt_ids: tokens of the prompt, ending where the answer begins.
        sampling: how its tokens are chosen.
        images: what the image tokens of the prompt stand for, in their order.

    Raises:
        EngineError: an empty prompt, or ids that are not integers of 0 or more.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    images: ImageBatch | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise EngineError("the prompt holds no token.", key=self.request_id, fix="a chat prompt holds at least the begin token.")
        if not isinstance(self.prompt_ids, tuple) or not all(_is_integer(token_id) and token_id >= 0 for token_id in self.prompt_ids):
            raise EngineError("the prompt is not a tuple of token ids.", key=self.request_id, fix="encode the text first.")


@dataclass
class Completion:
    """One finished answer.

    Attributes:
        request_id: of the request.
        token_ids: the answer, without its end token, stop token or stop text. Where a stop text begins inside a token, the text before it
            is encoded again, so that the ids decode to exactly the text before the stop text.
        finish_reason: "stop" (end token, stop token or stop text) or "length" (max_tokens reached).
        stop_reason: None for the model's end token and for "length"; else the stop text, or the stop token's id as text.
        prompt_tokens: tokens of the prompt.
        generated_tokens: tokens that the model chose, end and stop tokens included.
        seconds: from the start of its prompt's computation to its last token, in the company of whatever shared the batch.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Where a call of the engine stands after a step.

    Attributes:
        finished, running, waiting: requests.
        generated_tokens: chosen so far, over all requests of the call.
        prompt_tokens: prompt tokens computed so far.
        steps: engine steps so far.
        cache_bytes: bytes that the latent cache holds now.
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
