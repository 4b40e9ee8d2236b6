"""Deterministic mode: tokens and logprobs are the same bits alone, in any company and pieces, preempted, from the prefix cache."""

from __future__ import annotations

import pytest
from support.models import tiny_config
from support.multimodal import cells_of, image_batch, random_pixels, sequence_ids, tiny_multimodal

from ms4_train.inference import Completion, Engine, GenerationRequest, SamplingParams

PARTS = [(3, (1, 2), 4, (2, 2), 3), (5, (3, 1), 2), (7,), (3, (1, 2), 4, (3, 1), 3)]


def bits(completion: Completion) -> list[object]:
    """Everything that must be equal; floats compare by value, so equal means the same bits."""
    return [completion.token_ids, completion.logprobs]


def crowded(model, tokenizer, runner: str, longest: int) -> list[Engine]:
    """Companies of different sizes, pieces of seven tokens, and hardly room for two answers."""
    settings: list[dict] = [
        {"max_batch_size": 16},
        {"max_batch_size": 7, "token_budget": 7},
        {"max_batch_size": 8, "max_context": longest, "cache_tokens": longest + 8, "block_size": 2},
    ]
    return [Engine(model, tokenizer, deterministic=True, runner=runner, **chosen) for chosen in settings]  # type: ignore[arg-type]


@pytest.mark.parametrize("runner", ["native", "modules"])
def test_text(model, tokenizer, prompts, runner) -> None:
    sampling = SamplingParams(max_tokens=12 if runner == "native" else 6, temperature=0.8, seed=3, logprobs=2, ignore_eos=True)
    chosen = [*prompts, *prompts[:4]] if runner == "native" else [*prompts[4:9], prompts[5]]  # torch modules are slow in this mode
    wanted = [GenerationRequest(str(index), prompt, sampling) for index, prompt in enumerate(chosen)]
    solo = Engine(model, tokenizer, max_batch_size=1, deterministic=True, runner=runner, prefix_cache=False)
    alone = [bits(solo.generate([request])[0]) for request in wanted]
    longest = max(len(request.prompt_ids) for request in wanted) + sampling.max_tokens
    engines = crowded(model, tokenizer, runner, longest)
    for engine in engines:
        assert [bits(completion) for completion in engine.generate(wanted)] == alone
    assert engines[-1].stats.preemptions > 0
    assert sum(engine.stats.cached_tokens for engine in engines) > 0


@pytest.mark.parametrize("runner", ["native", "modules"])
def test_images(tokenizer, runner) -> None:
    model = tiny_multimodal(tiny_config(vocab_size=tokenizer.vocab_size))
    wanted = []
    for seed, parts in enumerate(PARTS):
        pixels = random_pixels(cells_of(parts), model.vision_config, seed=0 if seed == 3 else seed)
        ids = sequence_ids(parts, model.config.vocab_size, seed)
        images = image_batch(pixels, model.vision_config) if pixels else None
        wanted.append(GenerationRequest(str(seed), tuple(ids.tolist()), SamplingParams(max_tokens=6, logprobs=1), images))
    solo = Engine(model, tokenizer, max_batch_size=1, deterministic=True, runner=runner)
    alone = [bits(solo.generate([request])[0]) for request in wanted]
    for engine in crowded(model, tokenizer, runner, max(len(request.prompt_ids) for request in wanted) + 6):
        assert [bits(completion) for completion in engine.generate(wanted)] == alone


def test_control_modules_without_the_mode_differ_in_some_bit(model, tokenizer, prompts) -> None:
    """If they did not, the tests above would show nothing."""
    wanted = [GenerationRequest(str(index), prompt, SamplingParams(max_tokens=6, logprobs=0)) for index, prompt in enumerate(prompts)]
    solo = Engine(model, tokenizer, max_batch_size=1, runner="modules")
    alone = [bits(solo.generate([request])[0]) for request in wanted]
    together = Engine(model, tokenizer, max_batch_size=16, runner="modules").generate(wanted)
    assert [bits(completion) for completion in together] != alone
