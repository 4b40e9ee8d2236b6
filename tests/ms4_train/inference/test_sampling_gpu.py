"""The sampler on a CUDA device: tokens and log probabilities are the same bits in any company, and the tokens of a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.gpu import DEVICE, needs_gpu

from ms4_train.inference.sampling import Choice, Sampler
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.thinking import Thought

pytestmark = needs_gpu
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "logprobs": 3},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 7, "min_p": 0.01},
    {"temperature": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "logit_bias": ((5, 2.0),)},
]


def choose(logits_rv: torch.Tensor, numbers: list[int]) -> list[Choice]:
    rows: list[Any] = [
        SimpleNamespace(
            params=SamplingParams(**KINDS[number % len(KINDS)]),
            seed=number,
            prompt_ids=(1, 2, 3),
            generated_ids=[7] * number,
            constraint=None,
            thought=Thought(None, None),
        )
        for number in numbers
    ]
    sampler = Sampler(vocab_size=logits_rv.shape[1], eos_id=2, special=None, device=logits_rv.device)
    return sampler.choose(logits_rv, rows)


@pytest.mark.parametrize("size", [500, 8192, 131_072])
def test_company_changes_no_bit_and_a_cpu_chooses_the_same(size: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(40, size) * 3
    there = logits.to(DEVICE)
    together = choose(there, list(range(40)))
    assert [choose(there[row : row + 1], [row])[0] for row in range(40)] == together
    # exp differs by an ulp between the two, which moves a boundary between tokens by some 1e-13: no number here comes as close.
    assert [choice.token_id for choice in choose(logits, list(range(40)))] == [choice.token_id for choice in together]
