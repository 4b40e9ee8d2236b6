"""Draws samples from a model in this process, through the inference engine.

All samples of all tasks and both modes go to the engine in one call, so its batch stays full to the end.
Exercise it: ``pytest tests/evals/ms4_evals/clients/test_engine.py``.
"""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ms4_evals.clients.base import SampleAnswer, SampleRequest

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import Completion, GenerationRequest
    from ms4_train.model import Mistral4ForCausalLM

_DISTRIBUTIONS = ("ms4-train", "torch", "mistral-common")


class EngineClient:
    """A loaded model and its tokenizer as a client.

    Args:
        model: ready to run; adapters are attached already.
        tokenizer: of the model.
        identity: JSON values that identify the model; see ``ms4_recipes.evaluate``.
        max_batch_size: most samples computed at once.
        max_context: most tokens per sample, prompt included; None takes what the longest request needs, up to the model's limit.
    """

    def __init__(
        self,
        model: Mistral4ForCausalLM,
        tokenizer: ChatTokenizer,
        *,
        identity: Mapping[str, Any],
        max_batch_size: int = 32,
        max_context: int | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._identity = dict(identity)
        self._max_batch_size = max_batch_size
        self._max_context = max_context

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
        """Answer all requests in one call of the engine.

        Raises:
            EngineError: a request does not fit ``max_context`` or the model, or the model computes numbers that are not finite.
        """
        from ms4_train.inference import Engine

        wanted = {request.request_id: request for request in requests}
        prompts = {request.request_id: self._generation_request(request) for request in requests}
        needed = max(len(prompt.prompt_ids) + prompt.sampling.max_tokens for prompt in prompts.values())
        engine = Engine(
            self._model,
            self._tokenizer,
            max_batch_size=min(self._max_batch_size, len(requests)),
            max_context=self._max_context or needed,
        )
        engine.generate(
            list(prompts.values()),
            on_finish=lambda done: on_finish(wanted[done.request_id], self._sample_answer(done, prompts[done.request_id])),
            on_progress=lambda progress: on_progress(progress.generated_tokens),
        )

    def _generation_request(self, request: SampleRequest) -> GenerationRequest:
        from ms4_train.inference import SamplingParams, chat_request

        sampling = SamplingParams(temperature=request.temperature, top_p=request.top_p, seed=request.seed, max_tokens=request.max_tokens)
        return chat_request(
            self._tokenizer, request.messages, request_id=request.request_id, reasoning_effort=request.mode, sampling=sampling
        )

    def _sample_answer(self, completion: Completion, prompt: GenerationRequest) -> SampleAnswer:
        from ms4_train.chat import parse_answer

        answer = parse_answer(completion.token_ids, self._tokenizer)
        return SampleAnswer(
            prompt_hash=hashlib.sha256(array("q", prompt.prompt_ids).tobytes()).hexdigest(),
            thinking=answer.thinking,
            answer=answer.content,
            thinking_is_open=answer.thinking_state == "unterminated",
            thinking_tokens=answer.thinking_tokens,
            answer_tokens=answer.content_tokens,
            finish_reason=completion.finish_reason,
            seconds=completion.seconds,
        )
