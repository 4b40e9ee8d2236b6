"""A stream gives tokens as they become certain, and an error as it happens; what the engine promises of it is in test_engine."""

from __future__ import annotations

import pytest
import torch

from ms4_train.errors import EngineError
from ms4_train.inference import Engine, GenerationRequest, SamplingParams


def test_the_first_token_comes_before_the_last_is_computed(model, tokenizer, prompts) -> None:
    engine = Engine(model, tokenizer)
    with engine.stream(GenerationRequest("a", prompts[0], SamplingParams(max_tokens=50, ignore_eos=True))) as stream:
        next(stream)
        assert engine.stats.generated_tokens == 1
    assert not engine.is_open


def test_an_error_reaches_the_reader(model, tokenizer, prompts) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    engine = Engine(model, tokenizer)
    with pytest.raises(EngineError, match="not finite"):
        list(engine.stream(GenerationRequest("a", prompts[0])))
    assert not engine.is_open


def test_several_answers_are_no_stream(model, tokenizer, prompts) -> None:
    with pytest.raises(EngineError, match="cannot be streamed as one"):
        Engine(model, tokenizer).stream(GenerationRequest("a", prompts[0], n=2))
