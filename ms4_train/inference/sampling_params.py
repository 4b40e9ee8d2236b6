"""How the tokens of one answer are chosen and when it ends; every value is checked when it is given.

Exercise it: ``pytest tests/ms4_train/inference/test_sampling_params.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ms4_train.errors import EngineError

MAX_SEED = 2**63 - 1
MAX_TOP_LOGPROBS = 20
MAX_TOP_K = 2**31 - 1
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MIN_REPETITION, MAX_REPETITION = 0.01, 10.0
ConstraintKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


def is_integer(value: object) -> bool:
    """Whether ``value`` is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class ConstraintSpec:
    """A form that the answer must have.

    Args:
        kind: "json_object" (any JSON object; text empty), "json_schema" (text: the schema as JSON), "regex", "choice" (text: a JSON list of
            strings), or "lark" (a grammar in llguidance's Lark dialect, in which ``<[9]>`` is the token with id 9).
        text: see there.
        after_thinking: whether a thought may come first: then the form holds for what follows ``[/THINK]``, or from the first token where
            the model does not think.
    """

    kind: ConstraintKind
    text: str = ""
    after_thinking: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise EngineError(f"{self.kind!r:.40} is no kind of form.", key="constraint", fix=f"use {', '.join(get_args(ConstraintKind))}.")
        if not isinstance(self.text, str):
            raise EngineError("its text is no text.", key="constraint", fix="give a schema as JSON text: json.dumps(schema).")


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
        top_k: sample from so many most likely tokens; 0 is no limit.
        min_p: leave out tokens less likely than this share of the most likely one's probability.
        presence_penalty: taken from the logit of every token that the answer holds already.
        frequency_penalty: taken from a token's logit as often as the answer holds it.
        repetition_penalty: divides positive and multiplies negative logits of tokens that prompt or answer hold (CTRL, arXiv 1909.05858).
        logit_bias: (token id, value) pairs, added to logits.
        min_tokens: end and stop tokens are not chosen before so many tokens.
        ignore_eos: the model's end token does not end the answer.
        include_stop: a stop text, or stop token, that ends the answer is part of it.
        logprobs: None: none; k: of every generated token, with the k most likely ones.
        prompt_logprobs: likewise for the prompt's tokens. Such a prompt is computed whole, past the prefix cache.
        thinking_budget: most tokens of a thought, tags left out; the next token is then ``[/THINK]``. None is no limit, 0 closes at once.
        constraint: a form that the answer must have.

    Raises:
        EngineError: a value outside its range; ``key`` names the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    include_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    thinking_budget: int | None = None
    constraint: ConstraintSpec | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and not isinstance(self.constraint, ConstraintSpec):
            raise EngineError("is no ConstraintSpec.", key="constraint", fix='pass ConstraintSpec("json_schema", json.dumps(schema)).')
        self._check_distribution()
        self._check_ends()
        for key in ("logprobs", "prompt_logprobs"):
            value = getattr(self, key)
            if value is not None and (not is_integer(value) or not 0 <= value <= MAX_TOP_LOGPROBS):
                raise EngineError(f"{value!r} is not an integer from 0 to {MAX_TOP_LOGPROBS}.", key=key, fix="ask for fewer.")
        if self.thinking_budget is not None and (not is_integer(self.thinking_budget) or self.thinking_budget < 0):
            raise EngineError(
                f"{self.thinking_budget!r} is not an integer of 0 or more.", key="thinking_budget", fix="leave it out for no limit."
            )

    def _check_distribution(self) -> None:
        """Refuse what does not shape a distribution."""
        if not is_number(self.temperature) or self.temperature < 0:
            raise EngineError(f"{self.temperature!r} is not a finite number of 0 or more.", key="temperature", fix="use 0 for greedy.")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise EngineError(f"{self.top_p!r} is not above 0 and at most 1.", key="top_p", fix="use 1 to sample from all tokens.")
        if not is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise EngineError(f"{self.min_p!r} is not from 0 to 1.", key="min_p", fix="use 0 to leave it out.")
        if not is_integer(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise EngineError(f"{self.seed!r} is not an integer from 0 to 2^63 - 1.", key="seed", fix="choose a seed in that range.")
        if not is_integer(self.top_k) or not 0 <= self.top_k <= MAX_TOP_K:
            raise EngineError(f"{self.top_k!r} is not an integer from 0 to 2^31 - 1.", key="top_k", fix="use 0 for no limit.")
        for key in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, key)
            if not is_number(value) or abs(value) > MAX_PENALTY:
                raise EngineError(f"{value!r} is not from -{MAX_PENALTY:g} to {MAX_PENALTY:g}.", key=key, fix="use 0 to leave it out.")
        if not is_number(self.repetition_penalty) or not MIN_REPETITION <= self.repetition_penalty <= MAX_REPETITION:
            raise EngineError(
                f"{self.repetition_penalty!r} is not from {MIN_REPETITION:g} to {MAX_REPETITION:g}.",
                key="repetition_penalty",
                fix="use 1 for none.",
            )
        pairs = self.logit_bias
        if not isinstance(pairs, tuple) or not all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and is_integer(pair[0])
            and pair[0] >= 0
            and is_number(pair[1])
            and abs(pair[1]) <= MAX_BIAS
            for pair in pairs
        ):
            raise EngineError("is not made of (token id, value from -100 to 100).", key="logit_bias", fix="pass ((id, value), ...).")

    def _check_ends(self) -> None:
        """Refuse what cannot end an answer."""
        if not is_integer(self.max_tokens) or self.max_tokens < 1:
            raise EngineError(f"{self.max_tokens!r} is not an integer of 1 or more.", key="max_tokens", fix="ask for at least one token.")
        if not is_integer(self.min_tokens) or not 0 <= self.min_tokens <= self.max_tokens:
            raise EngineError(f"{self.min_tokens!r} is not an integer from 0 to max_tokens.", key="min_tokens", fix="lower it.")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise EngineError(f"{self.stop!r} is not a tuple of non-empty texts.", key="stop", fix="pass stop=('text',).")
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or not all(is_integer(token_id) and token_id >= 0 for token_id in ids):
            raise EngineError(f"{ids!r} is not a tuple of token ids.", key="stop_token_ids", fix="pass stop_token_ids=(2,).")
