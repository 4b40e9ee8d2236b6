"""One answer on its way: its tokens, its cache blocks, and what ends it.

Exercise it: ``pytest tests/ms4_train/inference/test_sequence.py``.

Shape suffixes: n image tokens of the prompt, d hidden.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from torch import Tensor

from ms4_train.inference.blocks import BlockName, block_name
from ms4_train.inference.constraints import Constraint
from ms4_train.inference.detokenize import StopMatcher
from ms4_train.inference.request import FinishReason, GenerationRequest, TokenLogprobs
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.thinking import Thought


@dataclass(frozen=True)
class PromptImages:
    """The images of a prompt, which its n answers share.

    Attributes:
        places: positions of the image tokens in the prompt, ascending.
        first_places: of them, those of each image's first token.
        digests: of each image's content.
        features_nd: embeddings of all image tokens, once they are computed.
    """

    places: tuple[int, ...]
    first_places: tuple[int, ...]
    digests: tuple[bytes, ...]
    features: list[Tensor] = field(default_factory=list)

    def digests_between(self, start: int, stop: int) -> tuple[bytes, ...]:
        """Digests of the images whose first token lies in a range of positions."""
        return self.digests[bisect.bisect_left(self.first_places, start) : bisect.bisect_left(self.first_places, stop)]

    def between(self, start: int, stop: int) -> tuple[int, int]:
        """The range of image tokens (indices into ``places``) that lie in a range of positions."""
        return bisect.bisect_left(self.places, start), bisect.bisect_left(self.places, stop)


@dataclass(eq=False)
class Sequence:
    """One answer on its way.

    Attributes:
        request: what was asked for.
        index: which of the request's n answers.
        seed: of this answer's random numbers.
        matcher: watches for stop texts.
        thought: follows the thinking.
        constraint: the form that the answer must have, if any.
        root: what its first block follows (see ``blocks.first_name``).
        images: of the prompt, if any.
        leader: the answer 0 of its request, while this one may still share its blocks.
        arrived: clock reading when it was submitted; ``started`` and ``first_token`` at its first step and its first token (0: not yet).
        token_ids: prompt and chosen tokens; all of them are wanted.
        generated_ids: the chosen ones.
        output_ids: those that are certain to belong to the answer.
        computed: how many of ``token_ids`` the cache holds.
        blocks: cache blocks in order.
        names: of its full blocks, as far as they were asked for.
        cached_tokens: prompt tokens found in the cache when it first began.
        reported: how many of ``output_ids`` and ``logprobs`` have been given out as events.
    """

    request: GenerationRequest
    index: int
    seed: int
    matcher: StopMatcher
    thought: Thought
    constraint: Constraint | None = None
    root: BlockName = b""
    images: PromptImages | None = None
    leader: Sequence | None = None
    arrived: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    generated_ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    names: list[BlockName] = field(default_factory=list)
    cached_tokens: int = -1
    reported: int = 0
    reported_logprobs: int = 0
    stop_reason: str | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs.append(None)

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self.request.sampling

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens of the prompt."""
        return self.request.prompt_ids

    @property
    def wanted(self) -> int:
        """How many tokens the cache shall hold."""
        return len(self.token_ids)

    @property
    def reads_cache(self) -> bool:
        """Whether its prompt may come out of the prefix cache: not while logprobs of prompt tokens are still wanted."""
        return self.params.prompt_logprobs is None or len(self.prompt_logprobs) == len(self.prompt_ids)

    def block_names(self, count: int, block_size: int) -> list[BlockName]:
        """Names of its first ``count`` blocks, which its tokens fill."""
        for index in range(len(self.names), count):
            start, stop = index * block_size, (index + 1) * block_size
            before = self.names[-1] if self.names else self.root
            images = self.images.digests_between(start, stop) if self.images else ()
            self.names.append(block_name(before, self.token_ids[start:stop], images))
        return self.names[:count]

    def accept(self, token_id: int, logprobs: TokenLogprobs | None, eos_id: int) -> FinishReason | None:
        """Take a chosen token; returns how the answer ends, if it ends with it."""
        params = self.params
        self.token_ids.append(token_id)
        self.generated_ids.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.thought.push(token_id)
        # The end token is no part of a form, so with one it always ends.
        if token_id == eos_id and (not params.ignore_eos or self.constraint is not None):
            return self._end("stop", None)
        if self.constraint is not None:
            self.constraint.accept(token_id)
        if token_id in params.stop_token_ids:
            if params.include_stop:
                self.output_ids += self.matcher.finish()
                self.output_ids.append(token_id)
            return self._end("stop", str(token_id))
        if len(self.generated_ids) < params.min_tokens:
            self.output_ids.append(token_id)
        else:
            self.output_ids += self.matcher.push(token_id)
            if self.matcher.matched is not None:
                return self._end("stop", self.matcher.matched)
        if self.constraint is not None and self.constraint.is_done:
            return self._end("stop", None)
        return self._end("length", None) if len(self.generated_ids) == params.max_tokens else None

    def _end(self, reason: FinishReason, stop_reason: str | None) -> FinishReason:
        self.stop_reason = stop_reason
        if self.matcher.matched is None:
            self.output_ids += self.matcher.finish()
        return reason
