"""The inference engine: batched generation with one model in this process, for evaluation, rollouts, chat and the server alike.

Requests of any length, of both reasoning modes and with different adapters share a batch; a sequence that ends makes room for the next one
at once, prompts that begin alike are computed once. Sampled answers are named by (seed, position), so company does not change them.

    engine = Engine(model, tokenizer, max_batch_size=32)
    completions = engine.generate([chat_request(tokenizer, messages, request_id="1", reasoning_effort="high", sampling=SamplingParams())])

Step by step, for who serves requests as they come: ``with engine: engine.submit(...); events = engine.step()``.
Exercise it: ``pytest tests/ms4_train/inference/test_engine.py``.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch

from ms4_train.errors import EngineError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.calls import StepEngine, same_id
from ms4_train.inference.checks import check_bounds, check_request
from ms4_train.inference.detokenize import EngineTokenizer
from ms4_train.inference.memory import cache_blocks
from ms4_train.inference.paged_cache import CACHE_DTYPES, PagedLatentCache
from ms4_train.inference.request import EngineStats, Event, GenerationRequest
from ms4_train.inference.run import Run
from ms4_train.inference.runners import RunnerChoice, make_runner
from ms4_train.inference.sequences import SequenceMaker
from ms4_train.model.network import Mistral4ForCausalLM

DEFAULT_TOKEN_BUDGET = 2048
DEFAULT_BLOCK_SIZE = 32


class Engine(StepEngine):
    """Generates answers with a model.

    Args:
        model: trained and used elsewhere at will while the engine is closed; its modes and gradients are left as they were.
        tokenizer: of the model.
        max_batch_size: most answers computed at once.
        max_context: most tokens per answer, prompt and ``max_tokens`` together; the model's own limit holds besides.
        token_budget: most tokens computed in one step, prompts included; default 2048, at least ``max_batch_size``.
        block_size: tokens of a cache block.
        cache_tokens: bound of the latent cache; default: what the batch can need, or what the memory allows.
        cache_dtype: of the latents; default: the model's own type.
        prefix_cache: whether prompts that begin alike share what is computed of them.
        deterministic: tokens and logprobs are the same bits whatever shares the batch.
        runner: "native" (compiled, on a CPU), "modules" (torch), or whichever serves.
        base_fingerprint: of the model (``weights.base_fingerprint``): adapters of another base are refused. None: not compared.

    Raises:
        EngineError: a bound that makes no sense, or a tokenizer with more tokens than the model.
    """

    def __init__(
        self,
        model: Mistral4ForCausalLM,
        tokenizer: EngineTokenizer,
        *,
        max_batch_size: int = 32,
        max_context: int = 4096,
        token_budget: int | None = None,
        block_size: int = DEFAULT_BLOCK_SIZE,
        cache_tokens: int | None = None,
        cache_dtype: torch.dtype | None = None,
        prefix_cache: bool = True,
        deterministic: bool = False,
        runner: RunnerChoice = "auto",
        base_fingerprint: str | None = None,
    ) -> None:
        budget = max(DEFAULT_TOKEN_BUDGET, max_batch_size) if token_budget is None else token_budget
        bounds = {"max_batch_size": (max_batch_size, 1), "max_context": (max_context, 2), "token_budget": (budget, max_batch_size)}
        check_bounds(model, tokenizer.vocab_size, {**bounds, "block_size": (block_size, 1)})
        own = model.model.embed_tokens.weight.dtype
        self.cache_dtype = cache_dtype or (own if own in CACHE_DTYPES else torch.bfloat16)
        if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
            raise EngineError(f"{cache_dtype} cannot be stored.", key="cache_dtype", fix="use float32, bfloat16 or float8_e4m3fn.")
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.max_context = min(max_context, model.config.max_position_embeddings)
        self.token_budget = budget
        self.block_size = block_size
        self.cache_tokens = cache_tokens
        self.prefix_cache = prefix_cache
        self.deterministic = deterministic
        self.adapters = AdapterRegistry(model, base_fingerprint)
        self._runner_choice: RunnerChoice = runner
        self._stats = EngineStats()
        self._maker = SequenceMaker(model, tokenizer, self.adapters)
        self._run: Run | None = None

    @property
    def stats(self) -> EngineStats:
        """Counters since the engine was made, gauges of now; a copy."""
        if self._run is not None:
            self._run.update_gauges()
        return copy.deepcopy(self._stats)

    @property
    def is_open(self) -> bool:
        """Whether it holds a cache and the model's weights must stay as they are."""
        return self._run is not None

    @property
    def has_work(self) -> bool:
        """Whether any answer is unfinished."""
        return self._run is not None and self._run.has_work

    def open(self, *, needed_tokens: int | None = None) -> None:
        """Take the memory of the cache and prepare the model; ``with engine:`` does it, and closes.

        Args:
            needed_tokens: that all requests of a batch can come to, prompts included; default: all of them at ``max_context``.
        """
        self._open(needed_tokens or self.max_batch_size * self.max_context)

    def close(self) -> None:
        """Drop unfinished answers and all that was cached, and give the model back as it was."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that cannot be served; computes nothing, from any thread.

        Raises:
            EngineError: see there.
        """
        vocab_size = min(self.tokenizer.vocab_size, self.model.config.vocab_size)
        names = self.adapters.names
        check_request(request, self.model, vocab_size=vocab_size, max_context=self.max_context, adapters=names)
        if request.sampling.constraint is not None:
            self._maker.check_constraint(request.sampling.constraint)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request of an open engine; its answers come as events of :meth:`step`.

        Raises:
            EngineError: it cannot be served, or its id is in use.
        """
        run = self._opened()
        self.check(request)
        if run.holds(request.request_id):
            raise same_id(request.request_id)
        run.add(self._maker.make(request, time.perf_counter()))

    def cancel(self, request_id: str) -> None:
        """Let a request's unfinished answers end with the next step, as "cancelled"; an unknown id is no error, it may just have ended."""
        self._opened().cancel(request_id)

    def step(self) -> list[Event]:
        """Compute one step; returns what has become certain. What goes wrong with one answer ends that answer as "error"."""
        return self._opened().step()

    def step_together(self) -> list[Event]:
        """The same where other ranks, which share the model's experts, compute a step too: meets them even with nothing to do.

        Raises:
            ParallelError: the ranks cannot meet any more; see ``Run.step``.
        """
        return self._opened().step(together=True)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter that requests may name; works while others run.

        Raises:
            AdapterError: it cannot be used, does not fit the model, or its name is taken.
        """
        self.adapters.load(name, Path(folder))
        self._adapters_changed()

    def drop_adapter(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            AdapterError: there is none of this name.
            EngineError: unfinished requests use it.
        """
        if self._run is not None and self._run.uses_adapter(name):
            raise EngineError(f"unfinished requests use the adapter {name!r}.", key="adapter", fix="wait for them, or cancel them.")
        self.adapters.drop(name)
        self._adapters_changed()

    def _adapters_changed(self) -> None:
        if self._run is not None:
            self._run.adapters_changed()

    def _open(self, needed_tokens: int, longest: int | None = None) -> None:
        if self._run is not None:
            raise EngineError("this engine is open already.", fix="close it first.")
        config, weight = self.model.config, self.model.model.embed_tokens.weight
        num_blocks = cache_blocks(
            asked_tokens=self.cache_tokens,
            needed_tokens=min(needed_tokens, self.max_batch_size * self.max_context),
            longest=self.max_context if longest is None else longest,
            block_size=self.block_size,
            bytes_per_token=config.num_hidden_layers * config.latent_dim * self.cache_dtype.itemsize,
            device=weight.device,
        )
        cache = PagedLatentCache(
            num_layers=config.num_hidden_layers,
            width=config.latent_dim,
            num_blocks=num_blocks,
            block_size=self.block_size,
            dtype=self.cache_dtype,
            device=weight.device,
        )
        runner = make_runner(self._runner_choice, self.model, cache, self.adapters, deterministic=self.deterministic)
        self._run = Run(
            runner=runner,
            cache=cache,
            model=self.model,
            tokenizer=self.tokenizer,
            stats=self._stats,
            max_running=self.max_batch_size,
            token_budget=self.token_budget,
            prefix_cache=self.prefix_cache,
            images_apart=runner.is_invariant,
        )

    def _drop_all(self) -> None:
        self._opened().drop_all()

    def _opened(self) -> Run:
        if self._run is None:
            raise EngineError("this engine is closed.", fix="open it: with engine: ...")
        return self._run
