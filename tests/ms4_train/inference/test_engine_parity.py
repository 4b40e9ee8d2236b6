"""The engine against transformers: greedy tokens identical in fp32, logprobs within 1e-4.

Four tiny models: 16 and 128 experts of text, 16 and 128 with images. Prompts of 1 to 3,000 tokens; the Llama-4 factor and YaRN's
frequencies change at 256 positions there, so many prompts lie beyond, some cross while they are answered. Each prompt is answered alone,
again in a mixed batch with prefix hits, and the short ones once more with so few cache blocks that running answers are preempted.

The oracle computes prompt and answer in one pass: that its most likely token is ours at every place means, by induction, that its own
greedy answer is ours. For some prompts its own ``generate`` is run besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.models import hf_twin, tiny_config, tiny_model
from support.multimodal import cells_of, hf_images, hf_multimodal_twin, image_batch, random_pixels, sequence_ids, tiny_multimodal
from torch import Tensor

from ms4_train.inference import Completion, Engine, GenerationRequest, SamplingParams
from ms4_train.model import Mistral4ForCausalLM

NEW_TOKENS = 8
LOGPROB_TOLERANCE = 1e-4
"""Both sides compute in fp32 with sums in different orders, which moves logits of this size by some 1e-6."""
NAMES = ["16 experts", "128 experts", "16 experts, images", "128 experts, images"]


@dataclass
class Pair:
    """Our model, and transformers' with the same weights."""

    ours: Mistral4ForCausalLM
    theirs: Any
    sees: bool


@dataclass
class Prompt:
    """Token ids and preprocessed images [C, H, W]."""

    ids: Tensor
    pixels: list[Tensor]


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tokenizer) -> Pair:
    experts, sees = int(request.param.split()[0]), "images" in request.param
    config = tiny_config(vocab_size=tokenizer.vocab_size, n_routed_experts=experts, num_experts_per_tok=4)
    if sees:
        ours = tiny_multimodal(config, seed=experts)
        return Pair(ours, hf_multimodal_twin(ours), sees)
    text = tiny_model(config, seed=experts)
    return Pair(text, hf_twin(text), sees)


def make_prompts(pair: Pair, count: int) -> list[Prompt]:
    """Lengths from 1 to 3,000, every third prompt beginning like the one before; every other one with images where the model sees."""
    vocab_size = pair.ours.config.vocab_size
    generator = torch.Generator().manual_seed(count)
    lengths = [1, 250, 2, 255, 31, 256, 33, 600, 64, 3000, 17, 1100]
    prompts: list[Prompt] = []
    for number in range(count):
        length = lengths[number] if number < len(lengths) else int(torch.randint(1, 400, (1,), generator=generator))
        if pair.sees and number % 4 == 3:  # what was asked last with these images, and more
            more = torch.randint(20, vocab_size, (3,), generator=generator)
            prompts.append(Prompt(torch.cat((prompts[-2].ids, more)), prompts[-2].pixels))
            continue
        if pair.sees and number % 2:
            parts = [max(1, length // 2), (1 + number % 3, 2), max(1, length // 3), *([(2, 1), 3] if number % 4 == 1 else [2])]
            ids = sequence_ids(parts, vocab_size, seed=number)
            prompts.append(Prompt(ids, random_pixels(cells_of(parts), pair.ours.vision_config, seed=number)))  # type: ignore[attr-defined]
            continue
        ids = torch.randint(20, vocab_size, (length,), generator=generator)
        if number % 3 == 2 and not prompts[-1].pixels:
            shared = min(length - 1, len(prompts[-1].ids)) if length > 1 else 0
            ids[:shared] = prompts[-1].ids[:shared]
        prompts.append(Prompt(ids, []))
    return prompts


def requests_of(pair: Pair, prompts: list[Prompt]) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True)
    vision: Any = getattr(pair.ours, "vision_config", None)
    return [
        GenerationRequest(str(number), tuple(prompt.ids.tolist()), sampling, image_batch(prompt.pixels, vision) if prompt.pixels else None)
        for number, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def judge(pair: Pair, prompt: Prompt, completion: Completion) -> float:
    """Asserts that transformers would have chosen each token; returns the largest difference of logprobs."""
    answer = torch.tensor(completion.token_ids)
    assert len(answer) == NEW_TOKENS
    ids = torch.cat((prompt.ids, answer))[None, :-1]
    extra = hf_images(prompt.pixels) if prompt.pixels else {}
    logits_tv = pair.theirs(input_ids=ids, **extra, logits_to_keep=NEW_TOKENS).logits[0]
    assert torch.equal(logits_tv.argmax(-1), answer), f"prompt of {len(prompt.ids)} tokens"
    theirs = torch.log_softmax(logits_tv.double(), -1).gather(1, answer[:, None])[:, 0]
    ours = torch.tensor([entry.logprob for entry in completion.logprobs or []], dtype=torch.float64)
    return float((ours - theirs).abs().max())


def check(pair: Pair, prompts: list[Prompt], tokenizer) -> None:
    requests = requests_of(pair, prompts)
    alone = Engine(pair.ours, tokenizer, max_batch_size=1, prefix_cache=False, max_context=4096).generate(requests)
    worst = max(judge(pair, prompt, completion) for prompt, completion in zip(prompts, alone, strict=True))
    assert worst < LOGPROB_TOLERANCE, worst
    longest = max(len(request.prompt_ids) for request in requests) + NEW_TOKENS
    mixed = Engine(pair.ours, tokenizer, max_batch_size=12, max_context=longest, cache_tokens=2 * longest, block_size=8, token_budget=160)
    compare(alone, mixed.generate(requests))
    assert mixed.stats.cached_tokens > 0
    # Blocks of two tokens, and hardly more of them than the longest answer needs: every answer outgrows what was free when it began.
    short = [request for request in requests if len(request.prompt_ids) < 80]
    longest = max(len(request.prompt_ids) for request in short) + NEW_TOKENS
    tight = Engine(pair.ours, tokenizer, max_batch_size=8, max_context=longest, cache_tokens=longest + 16, block_size=2)
    compare([completion for completion in alone if completion.prompt_tokens < 80], tight.generate(short))
    assert tight.stats.preemptions > 0


def compare(alone: list[Completion], together: list[Completion]) -> None:
    assert len(alone) == len(together)
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        for left, right in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert abs(left.logprob - right.logprob) < LOGPROB_TOLERANCE


def test_greedy_tokens_and_logprobs_are_transformers(pair, tokenizer) -> None:
    check(pair, make_prompts(pair, 12), tokenizer)


@pytest.mark.slow
def test_fifty_prompts_of_each_model(pair, tokenizer) -> None:
    check(pair, make_prompts(pair, 50), tokenizer)


def test_transformers_own_generate_gives_the_same_tokens(pair, tokenizer) -> None:
    prompts = [prompt for prompt in make_prompts(pair, 9) if len(prompt.ids) < 700]
    completions = Engine(pair.ours, tokenizer).generate(requests_of(pair, prompts))
    for prompt, completion in zip(prompts, completions, strict=True):
        extra = hf_images(prompt.pixels) if prompt.pixels else {}
        output = pair.theirs.generate(
            input_ids=prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids)[None],
            **extra,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output[0, len(prompt.ids) :].tolist() == completion.token_ids


def test_control_the_judge_notices_another_token_and_another_logprob(pair, tokenizer) -> None:
    (prompt,) = make_prompts(pair, 1)
    (completion,) = Engine(pair.ours, tokenizer).generate(requests_of(pair, [prompt]))
    completion.logprobs = [entry._replace(logprob=entry.logprob + 1e-3) for entry in completion.logprobs or []]
    assert judge(pair, prompt, completion) > LOGPROB_TOLERANCE
    completion.token_ids[3] = (completion.token_ids[3] + 1) % pair.ours.config.vocab_size
    with pytest.raises(AssertionError, match="prompt of"):
        judge(pair, prompt, completion)
