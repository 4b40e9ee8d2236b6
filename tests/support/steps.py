"""Feeds a runner of the engine: sequences with blocks in wild order, cut into pieces as a test likes, greedy continuations."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.step import ImagePlaces, Runner, StepPiece
from ms4_train.model import Mistral4ForCausalLM


def paged_cache(
    model: Mistral4ForCausalLM, *, num_blocks: int = 64, block_size: int = 8, dtype: torch.dtype = torch.float32
) -> PagedLatentCache:
    """A cache for a tiny model whose values, until something is written, are NaN."""
    config = model.config
    cache = PagedLatentCache(
        num_layers=config.num_hidden_layers,
        width=config.latent_dim,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=dtype,
        device=model.model.embed_tokens.weight.device,
    )
    for pool_nsm in cache.pools:
        if dtype == torch.float8_e4m3fn:
            pool_nsm.view(torch.uint8).fill_(0x7F)
        else:
            pool_nsm.fill_(torch.nan)
    return cache


class Feeder:
    """Sequences by name, in one cache.

    Args:
        cache: whose blocks are given out, in random order.
    """

    def __init__(self, cache: PagedLatentCache, seed: int = 0) -> None:
        self._block_size = cache.block_size
        self._free = list(range(cache.num_blocks))
        random.Random(seed).shuffle(self._free)
        self._blocks: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    def piece(
        self,
        name: str,
        token_ids: Sequence[int],
        wanted: Sequence[int] | None = None,
        adapter: str | None = None,
        images: ImagePlaces | None = None,
    ) -> StepPiece:
        """The next tokens of a sequence; all of them are wanted if nothing else is said."""
        start, blocks = self._lengths.get(name, 0), self._blocks.setdefault(name, [])
        stop = start + len(token_ids)
        while len(blocks) * self._block_size < stop:
            blocks.append(self._free.pop())
        self._lengths[name] = stop
        return StepPiece(
            tuple(token_ids), start, tuple(blocks), tuple(range(len(token_ids)) if wanted is None else wanted), adapter, images
        )

    def slots(self, name: str) -> list[int]:
        """Where the sequence's tokens lie: block * block size + offset."""
        size = self._block_size
        return [self._blocks[name][position // size] * size + position % size for position in range(self._lengths[name])]


def hidden_in_steps(runner: Runner, feeder: Feeder, ids: dict[str, list[int]], steps: Sequence[dict[str, int]]) -> dict[str, Tensor]:
    """Hidden states of every token [t, d], by sequence.

    Args:
        ids: of the sequences.
        steps: how many tokens each step takes of which sequences; what is left then goes token by token.
    """
    done, found = dict.fromkeys(ids, 0), {name: [] for name in ids}
    longest = max(len(tokens) for tokens in ids.values())
    for step in [*steps, *(dict.fromkeys(ids, 1) for _ in range(longest))]:
        taken = {name: ids[name][done[name] : done[name] + count] for name, count in step.items()}
        taken = {name: tokens for name, tokens in taken.items() if tokens}
        if not taken:
            continue
        hidden_rd = runner.run([feeder.piece(name, tokens) for name, tokens in taken.items()])
        for name, part in zip(taken, hidden_rd.split([len(tokens) for tokens in taken.values()]), strict=True):
            found[name].append(part)
            done[name] += len(taken[name])
    return {name: torch.cat(parts) for name, parts in found.items()}


def greedy(runner: Runner, feeder: Feeder, prompts: dict[str, Sequence[int]], count: int) -> dict[str, list[int]]:
    """Greedy continuations: all prompts in one step, then one token of each per step."""
    last, found = {name: list(prompt) for name, prompt in prompts.items()}, {name: [] for name in prompts}
    for _ in range(count):
        pieces = [feeder.piece(name, tokens, wanted=[len(tokens) - 1]) for name, tokens in last.items()]
        chosen = runner.logits(runner.run(pieces), [None] * len(pieces)).argmax(dim=-1).tolist()
        for name, token_id in zip(prompts, chosen, strict=True):
            found[name].append(token_id)
            last[name] = [token_id]
    return found
