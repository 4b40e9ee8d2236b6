"""Requests that cannot be served are refused by name, before anything is computed; more cases beside the engine's own in test_engine."""

from __future__ import annotations

import pytest
from support.models import tiny_config, tiny_model

from ms4_train.errors import EngineError
from ms4_train.inference import GenerationRequest, SamplingParams
from ms4_train.inference.checks import check_bounds, check_request


@pytest.fixture(scope="module")
def small():
    return tiny_model(tiny_config(vocab_size=100))


def check(small, adapters=(), **fields) -> None:
    prompt = fields.pop("prompt", (1, 2, 3))
    check_request(GenerationRequest("r", prompt, **fields), small, vocab_size=90, max_context=50, adapters=adapters)


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"prompt": (1, 90)}, "r", "vocabulary ends at 89"),
        ({"sampling": SamplingParams(max_tokens=48)}, "r", "make 51, above max_context 50"),
        ({"adapter": "french", "sampling": SamplingParams(max_tokens=4)}, "adapter", "no adapter 'french'"),
        ({"sampling": SamplingParams(max_tokens=4, logit_bias=((90, 1.0),))}, "logit_bias", "beyond the vocabulary"),
        ({"sampling": SamplingParams(max_tokens=4, stop_token_ids=(5, 91))}, "stop_token_ids", "token 91 is beyond the vocabulary"),
    ],
)
def test_each_refusal_names_its_field(small, fields, key, words) -> None:
    with pytest.raises(EngineError, match=words) as raised:
        check(small, **fields)
    assert raised.value.key == key
    assert raised.value.fix


def test_what_can_be_served_passes(small) -> None:
    check(small, adapters=("french",), adapter="french", sampling=SamplingParams(max_tokens=47, logit_bias=((89, 1.0),)))


def test_bounds(small) -> None:
    check_bounds(small, 100, {"a": (1, 1)})
    with pytest.raises(EngineError, match="0 is below 1"):
        check_bounds(small, 100, {"a": (0, 1)})
    with pytest.raises(EngineError, match="the tokenizer has 101 tokens"):
        check_bounds(small, 101, {})
