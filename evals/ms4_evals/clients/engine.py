"""Draws samples from a model in this process, through the inference engine.

All samples of all tasks and both modes go through one engine, whose queue is kept filled, so its batch stays full to the end.
Exercise it: ``pytest tests/evals/ms4_evals/clients/test_engine.py``.
"""

from __future__ import annotations

import hashlib
import platform
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_train.errors import StoppedError

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import Completion, Event, GenerationRequest
    from ms4_train.inference.calls import StepEngine
    from ms4_train.inference.mesh_engine import EngineRanks
    from ms4_train.model import Mistral4ForCausalLM

OnFinish = Callable[[SampleRequest, SampleAnswer], None]

_DISTRIBUTIONS = ("ms4-train", "torch", "mistral-common")
_QUEUED = 4
"""Requests beyond the batch that wait in the engine, so that a place that falls free is taken in the next step."""
_MEASURED = 20
"""Longest prompts that are encoded to find the context that is needed."""


@dataclass(frozen=True)
class _Flying:
    """A request inside the engine."""

    request: SampleRequest
    prompt_hash: str


class EngineClient:
    """A loaded model and its tokenizer as a client.

    Args:
        model: ready to run; adapters are attached already.
        tokenizer: of the model.
        identity: JSON values that identify the model; see ``clients.embedded``.
        max_batch_size: most samples computed at once, by each rank where there are several.
        max_context: most tokens per sample, prompt included; None takes what the longest request needs, up to the model's limit.
        ranks: those that compute together; this is rank 0 then, and the others follow it. None: this process alone.
    """

    def __init__(
        self,
        model: Mistral4ForCausalLM,
        tokenizer: ChatTokenizer,
        *,
        identity: Mapping[str, Any],
        max_batch_size: int = 32,
        max_context: int | None = None,
        ranks: EngineRanks | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._identity = dict(identity)
        self._max_batch_size = max_batch_size
        self._max_context = max_context
        self._ranks = ranks

    def identity(self) -> Mapping[str, Any]:
        """As given."""
        return self._identity

    def versions(self) -> Mapping[str, str]:
        """Versions of Python and of the libraries that compute the answers."""
        return {"python": platform.python_version(), **{name: version(name) for name in _DISTRIBUTIONS}}

    def answer(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Answer all requests through one engine, whose queue is refilled as places fall free.

        Only the prompts in the queue are held as tokens. A request that the engine cannot finish ends as an answer
        with an error; the others go on.

        Raises:
            EngineError: the longest request does not fit ``max_context`` or the model, or there is no memory for it.
            StoppedError: the ranks were asked to stop.
        """
        if not requests:
            return
        waiting = deque(requests)
        count = 1 if self._ranks is None else self._ranks.mesh.world_size
        longest, needed = self._measure(requests, min(self._max_batch_size * count, len(requests)))
        context = len(longest.prompt_ids) + max(request.max_tokens for request in requests)
        engine = self._engine(min(self._max_batch_size, len(requests)), self._max_context or context)
        engine.check(longest)  # what does not fit is said before hours are spent on the rest
        flying: dict[str, _Flying] = {}
        engine.open(needed_tokens=needed)
        try:
            while waiting or flying:
                if self._ranks is not None and self._ranks.is_stopping:
                    left = len(waiting) + len(flying)
                    raise StoppedError(f"stopped with {left} samples to draw.", fix="run the same command again to go on.")
                while waiting and len(flying) < engine.max_batch_size + _QUEUED:
                    self._send(engine, waiting.popleft(), flying, on_finish)
                for event in engine.step():
                    self._take(event, flying, on_finish)
                on_progress(engine.stats.generated_tokens)
        finally:
            engine.close()

    def close(self) -> None:
        """The model belongs to whoever made it."""

    def _engine(self, batch: int, context: int) -> StepEngine:
        from ms4_train.inference import Engine

        if self._ranks is not None:
            return self._ranks.engine(max_batch_size=batch, max_context=context)
        return Engine(self._model, self._tokenizer, max_batch_size=batch, max_context=context)

    def _measure(self, requests: Sequence[SampleRequest], batch: int) -> tuple[GenerationRequest, int]:
        """The longest request, and about how many tokens a batch of the longest comes to.

        Only the prompts that are longest in characters are encoded; the others are taken to have as many tokens per character as
        the densest of those. Too small an estimate costs waiting, not answers.
        """
        found: dict[str, tuple[int, SampleRequest]] = {}
        for request in requests:
            if (key := f"{request.mode} {request.problem_id}") not in found:
                found[key] = (sum(len(message["content"]) for message in request.messages), request)
        ranked = sorted(found.values(), key=lambda pair: -pair[0])
        longest, most, density = None, 0, 0.0
        for number, (characters, request) in enumerate(ranked):
            if number >= _MEASURED and characters < ranked[0][0] // 2:
                break
            prompt = self._generation_request(request)
            size = len(prompt.prompt_ids)
            density = max(density, size / max(characters, 1))
            if longest is None or size + request.max_tokens > most:
                longest, most = prompt, size + request.max_tokens
        assert longest is not None
        sizes = sorted((int(density * found[f"{r.mode} {r.problem_id}"][0]) + r.max_tokens for r in requests), reverse=True)
        return longest, sum(sizes[:batch])

    def _send(self, engine: StepEngine, request: SampleRequest, flying: dict[str, _Flying], on_finish: OnFinish) -> None:
        from ms4_train.errors import MS4Error

        started = time.perf_counter()
        try:
            prompt = self._generation_request(request)
            engine.submit(prompt)
        except MS4Error as error:
            on_finish(request, _failed(request, str(error), time.perf_counter() - started))
            return
        flying[request.request_id] = _Flying(request, hashlib.sha256(array("q", prompt.prompt_ids).tobytes()).hexdigest())

    def _take(self, event: Event, flying: dict[str, _Flying], on_finish: OnFinish) -> None:
        from ms4_train.inference import FinishEvent

        if not isinstance(event, FinishEvent):
            return
        completion = event.completion
        found = flying.pop(completion.request_id)
        if completion.error is not None:
            on_finish(found.request, _failed(found.request, str(completion.error), completion.seconds))
        else:
            on_finish(found.request, self._sample_answer(completion, found.prompt_hash))

    def _generation_request(self, request: SampleRequest) -> GenerationRequest:
        from ms4_train.inference import SamplingParams, chat_request

        sampling = SamplingParams(temperature=request.temperature, top_p=request.top_p, seed=request.seed, max_tokens=request.max_tokens)
        return chat_request(
            self._tokenizer, request.messages, request_id=request.request_id, reasoning_effort=request.mode, sampling=sampling
        )

    def _sample_answer(self, completion: Completion, prompt_hash: str) -> SampleAnswer:
        from ms4_train.chat import parse_answer

        answer = parse_answer(completion.token_ids, self._tokenizer)
        return SampleAnswer(
            prompt_hash=prompt_hash,
            thinking=answer.thinking,
            answer=answer.content,
            thinking_is_open=answer.thinking_state == "unterminated",
            finish_reason=completion.finish_reason,
            seconds=completion.seconds,
            prompt_tokens=completion.prompt_tokens,
            usage_tokens=completion.generated_tokens,
            usage_thinking_tokens=answer.thinking_tokens,
            first_token_seconds=completion.first_token_seconds,
        )


def _failed(request: SampleRequest, error: str, seconds: float) -> SampleAnswer:
    return SampleAnswer("", "", "", False, "", seconds, error=error, error_class="engine")
