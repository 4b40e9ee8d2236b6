"""The inference engine: batched generation with one model in this process.

Requests of any length and of both reasoning modes share a batch; a sequence that ends makes room for the next one at once. Greedy answers
in fp32 and sampled answers by (seed, position) do not depend on what else is in the batch.

    engine = Engine(model, tokenizer, max_batch_size=32)
    completions = engine.generate([chat_request(tokenizer, messages, request_id="1", reasoning_effort="high", sampling=SamplingParams())])

Exercise it: ``pytest tests/ms4_train/inference/test_engine.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Self

from ms4_train.errors import EngineError
from ms4_train.inference.detokenize import EngineTokenizer
from ms4_train.inference.latent_cache import SlotLatentCache
from ms4_train.inference.request import Completion, GenerationRequest, Progress
from ms4_train.inference.scheduler import Scheduler
from ms4_train.inference.session import Session
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM

DEFAULT_TOKEN_BUDGET = 2048


class Engine:
    """Generates answers with a model.

    Args:
        model: trained and used elsewhere at will between calls; its modes and gradients are left as they were.
        tokenizer: of the model.
        max_batch_size: most requests computed at once.
        max_context: most tokens per request, prompt and ``max_tokens`` together; the model's own limit holds besides.
        token_budget: most tokens computed in one step, prompts included; default 2048, at least ``max_batch_size``.

    Raises:
        EngineError: a bound below 1, or a tokenizer with more tokens than the model.
    """

    def __init__(
        self,
        model: Mistral4ForCausalLM,
        tokenizer: EngineTokenizer,
        *,
        max_batch_size: int = 32,
        max_context: int = 4096,
        token_budget: int | None = None,
    ) -> None:
        budget = max(DEFAULT_TOKEN_BUDGET, max_batch_size) if token_budget is None else token_budget
        for key, value, smallest in (
            ("max_batch_size", max_batch_size, 1),
            ("max_context", max_context, 2),
            ("token_budget", budget, max_batch_size),
        ):
            if value < smallest:
                raise EngineError(f"{value} is below {smallest}.", key=key, fix=f"use {smallest} or more.")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}.",
                key="vocab_size",
                fix="use the tokenizer that the model was trained with.",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.max_context = min(max_context, model.config.max_position_embeddings)
        self.token_budget = budget
        self._is_busy = False

    @property
    def max_cache_bytes(self) -> int:
        """Most bytes that the latent cache of a call can take."""
        return self._make_cache(self.max_batch_size).max_bytes

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        *,
        on_finish: Callable[[Completion], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Completion]:
        """Answers every request.

        Args:
            requests: in any number; those that do not fit the batch wait for a free place.
            on_finish: called with each completion as soon as it is there.
            on_progress: called after each step.

        Returns:
            Completions in the order of the requests.

        Raises:
            EngineError: a request that cannot be served (checked before anything is computed), a request id given twice, logits that are
                not finite, or a call while another one is running.
        """
        wanted = list(requests)
        self._check(wanted)
        completions: list[Completion | None] = [None] * len(wanted)
        with self._session(wanted) as session:
            while not session.is_done:
                for sequence, completion in session.step():
                    completions[sequence.index] = completion
                    if on_finish is not None:
                        on_finish(completion)
                if on_progress is not None:
                    on_progress(session.progress)
        return [completion for completion in completions if completion is not None]

    def stream(self, request: GenerationRequest) -> TokenStream:
        """Answers one request token by token.

        Tokens that may turn out to begin a stop text are held back until that is known. The engine is busy until the stream has ended or
        was closed.

        Raises:
            EngineError: as ``generate``; a bad request is refused here, not at the first token.
        """
        self._check([request])
        return TokenStream(self._session([request]))

    def _check(self, requests: list[GenerationRequest]) -> None:
        vocab_size = min(self.tokenizer.vocab_size, self.model.config.vocab_size)
        seen: set[str] = set()
        for request in requests:
            if request.request_id in seen:
                raise EngineError("this request id is given twice.", key=request.request_id, fix="give every request its own id.")
            seen.add(request.request_id)
            highest = max(request.prompt_ids)
            if highest >= vocab_size:
                raise EngineError(
                    f"the prompt holds token {highest}, the vocabulary ends at {vocab_size - 1}.",
                    key=request.request_id,
                    fix="encode the prompt with the model's tokenizer.",
                )
            self._check_images(request)
            prompt, answer = len(request.prompt_ids), request.sampling.max_tokens
            if prompt + answer > self.max_context:
                raise EngineError(
                    f"{prompt} prompt tokens and max_tokens {answer} make {prompt + answer}, above max_context {self.max_context} "
                    f"(the model's limit is {self.model.config.max_position_embeddings}).",
                    key=request.request_id,
                    fix="lower max_tokens, shorten the prompt, or raise max_context up to the model's limit.",
                )

    def _check_images(self, request: GenerationRequest) -> None:
        """Refuse images that the model cannot see, or that are not as many as their tokens."""
        if not isinstance(self.model, Mistral3ForConditionalGeneration):
            if request.images is not None:
                raise EngineError("the model has no vision.", key=request.request_id, fix="load a checkpoint with a vision tower.")
            return
        config = self.model.vision_config
        places = request.prompt_ids.count(config.image_token_index)
        try:
            given = 0 if request.images is None else sum(request.images.num_tokens(config.spatial_merge_size))
        except ValueError as error:
            raise EngineError(f"{error}.", key=request.request_id, fix="preprocess the images for this model.") from None
        if places != given:
            raise EngineError(
                f"the prompt holds {places} image tokens, the images make {given}.",
                key=request.request_id,
                fix="encode prompt and images together, with chat_request.",
            )

    def _make_cache(self, slots: int) -> SlotLatentCache:
        config = self.model.config
        weight = self.model.model.embed_tokens.weight
        return SlotLatentCache(
            num_layers=config.num_hidden_layers,
            width=config.latent_dim,
            max_slots=slots,
            max_context=self.max_context,
            dtype=weight.dtype,
            device=weight.device,
        )

    @contextlib.contextmanager
    def _session(self, requests: list[GenerationRequest]) -> Iterator[Session]:
        if self._is_busy:
            raise EngineError("this engine is generating already.", fix="finish or close the open stream first.")
        self._is_busy = True
        try:
            scheduler = Scheduler(max_running=self.max_batch_size, token_budget=self.token_budget)
            with Session(self.model, self.tokenizer, requests, scheduler, self._make_cache(self.max_batch_size)) as session:
                yield session
        finally:
            self._is_busy = False


class TokenStream(Iterator[int]):
    """The tokens of one answer as they are chosen; ``completion`` is there once they have ended. Close it to stop early."""

    def __init__(self, session: contextlib.AbstractContextManager[Session]) -> None:
        self.completion: Completion | None = None
        self._tokens = self._run(session)

    def _run(self, manager: contextlib.AbstractContextManager[Session]) -> Generator[int, None, None]:
        with manager as session:
            sequence = session.sequences[0]
            given = 0
            while not session.is_done:
                for _, completion in session.step():
                    self.completion = completion
                while given < len(sequence.output_ids):
                    given += 1
                    yield sequence.output_ids[given - 1]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """Stops generating and frees the engine; a finished stream needs no closing."""
        self._tokens.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
