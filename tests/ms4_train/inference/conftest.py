"""A tiny model with the tiny tokenizer's vocabulary, and plain generation without any of the engine's machinery to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer

from ms4_train.model import Mistral4ForCausalLM, SequenceLayout

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer

Alone = Callable[[tuple[int, ...], int], list[int]]


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: ChatTokenizer) -> Mistral4ForCausalLM:
    return tiny_model(tiny_config(vocab_size=tokenizer.vocab_size, n_routed_experts=16, num_experts_per_tok=4))


@pytest.fixture
def alone(model: Mistral4ForCausalLM) -> Alone:
    """Greedy tokens of one prompt: the whole sequence is computed anew for each token, in the expanded form, without a cache."""

    @torch.no_grad()
    def generate(prompt_ids: tuple[int, ...], count: int) -> list[int]:
        ids = list(prompt_ids)
        for _ in range(count):
            hidden_td = model(torch.tensor(ids), SequenceLayout.from_lengths([len(ids)]))
            ids.append(int(model.logits(hidden_td[-1:]).argmax()))
        return ids[len(prompt_ids) :]

    return generate


@pytest.fixture(scope="session")
def prompts(tokenizer: ChatTokenizer) -> list[tuple[int, ...]]:
    """Chat prompts of both modes, raw prompts, and lengths from 1 to 90."""
    generator = torch.Generator().manual_seed(11)
    chats = [
        tuple(tokenizer.encode_chat([{"role": "user", "content": text}], reasoning_effort=mode))
        for text in ("Hi", "7*3+8-5*9 mod 10 =", "Name three colours of the rainbow, please.")
        for mode in ("none", "high")
    ]
    lengths = [1, 2, 5, 17, 33, 64, 90]
    raw = [tuple(torch.randint(38, tokenizer.vocab_size, (length,), generator=generator).tolist()) for length in lengths]
    return [prompt for pair in zip(chats, raw, strict=False) for prompt in pair] + raw[len(chats) :]
