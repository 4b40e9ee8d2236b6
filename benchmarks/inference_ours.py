"""Our engine as a contestant: open before the clock starts, with the settings that it has by itself.

Exercise it: ``python benchmarks/inference.py --quick --peers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ms4_train.inference import Engine, GenerationRequest, SamplingParams
from ms4_train.inference.request import TokenEvent
from ms4_train.weights import load_model

MAX_BATCH = 64


class EndlessTokenizer:
    """What the engine asks of a tokenizer, with an end token that no model can choose."""

    def __init__(self, vocab_size: int) -> None:
        self.eos_id = -1
        self.vocab_size = vocab_size

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Never asked for: the requests have no stop text."""
        raise AssertionError("no request has a stop text")

    def encode_text(self, text: str) -> list[int]:
        """Never asked for: the requests have no stop text."""
        raise AssertionError("no request has a stop text")


class Contestant:
    """The engine on one folder."""

    serves = True

    def __init__(self, model: dict[str, str], threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = load_model(model["hf"], dtype=torch.float32).eval()
        self._engine: Engine | None = None
        self.facts: dict[str, Any] = {"version": f"this tree, torch {torch.__version__}"}

    def variants(self, work: dict[str, Any]) -> tuple[str, ...]:
        """There is one."""
        return ("auto",)

    def prepare(self, variant: str, work: dict[str, Any]) -> None:
        """Open an engine whose bounds the work fits in."""
        if self._engine is not None:
            self._engine.close()
        longest = max(len(prompt) + new for prompt, new in zip(work["prompts"], work["new_tokens"], strict=True))
        answers = min(MAX_BATCH, len(work["prompts"]) * work["samples"])
        tokenizer = EndlessTokenizer(self._model.config.vocab_size)
        self._engine = Engine(self._model, tokenizer, max_batch_size=answers, max_context=longest)
        self._engine.open()

    def generate(self, work: dict[str, Any]) -> list[list[int]]:
        """Tokens of every prompt's answers."""
        requests = [
            _request(index, prompt, new, work["samples"])
            for index, (prompt, new) in enumerate(zip(work["prompts"], work["new_tokens"], strict=True))
        ]
        return [completion.token_ids for completion in self._opened.generate(requests)]

    def submit(self, request: int, prompt: list[int], new_tokens: int) -> None:
        """Queue a prompt."""
        self._opened.submit(_request(request, prompt, new_tokens, 1))

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return self._opened.has_work

    def step(self) -> list[tuple[int, int]]:
        """One step; (request, new tokens) of those that got some."""
        events = self._opened.step()
        return [(int(event.request_id), len(event.token_ids)) for event in events if isinstance(event, TokenEvent)]

    def measured(self) -> dict[str, float]:
        """MiB of the latent cache: of the blocks that hold something now, and its bound."""
        stats = self._opened.stats
        held = stats.blocks_used + stats.blocks_cached
        return {"cache_mib": held * stats.bytes_per_block / 2**20, "cache_bound_mib": stats.blocks_total * stats.bytes_per_block / 2**20}

    @property
    def _opened(self) -> Engine:
        assert self._engine is not None, "prepare comes first"
        return self._engine


def _request(index: int, prompt: list[int], new_tokens: int, samples: int) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0 if samples == 1 else 1.0)
    return GenerationRequest(str(index), tuple(prompt), sampling, n=samples)


def profile(contestant: Contestant, works: Sequence[dict[str, Any]]) -> None:
    """Print where the time of the later runs goes: operations of torch, then functions of Python."""
    import cProfile
    import pstats

    (variant,) = contestant.variants(works[0])
    contestant.prepare(variant, works[0])
    contestant.generate(works[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        contestant.generate(works[1])
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))
    with cProfile.Profile() as calls:
        contestant.generate(works[2])
    pstats.Stats(calls).sort_stats("tottime").print_stats(30)
