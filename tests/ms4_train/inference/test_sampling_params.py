"""Sampling parameters refuse what the sampler could not use, naming the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ms4_train.errors import EngineError
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.0),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("presence_penalty", 2.1),
        ("presence_penalty", "0"),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", 5e-324),
        ("repetition_penalty", 10.5),
        ("logit_bias", {5: 1.0}),
        ("logit_bias", ((5,),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((5, 101.0),)),
        ("logit_bias", ((5, math.nan),)),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("stop", ("",)),
        ("stop", "text"),
        ("stop", [1]),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", [2]),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", 1.0),
        ("thinking_budget", -1),
        ("thinking_budget", 1.5),
    ],
)
def test_bad_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(EngineError) as caught:
        SamplingParams(**{key: value})
    assert caught.value.key == key
    assert caught.value.fix


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0, "top_p": 1, "min_p": 0, "top_k": 0},
        {"temperature": 5.0, "top_p": 1e-9, "min_p": 1, "seed": 2**63 - 1, "max_tokens": 1, "min_tokens": 1},
        {"stop": ("a", "\n\n"), "stop_token_ids": (0, 2), "ignore_eos": True, "include_stop": True},
        {"presence_penalty": -2.0, "frequency_penalty": 2, "repetition_penalty": 10, "logit_bias": ((0, -100), (7, 100.0))},
        {"logprobs": 0, "prompt_logprobs": 20, "thinking_budget": 0, "constraint": ConstraintSpec("json_object")},
    ],
)
def test_the_edges_of_the_ranges_are_accepted(values: dict) -> None:
    params = SamplingParams(**values)
    for key, value in values.items():
        assert getattr(params, key) == value


def test_parameters_and_forms_can_be_keys() -> None:
    """Compiled forms are kept by specification."""
    spec = ConstraintSpec("regex", "a+")
    assert spec == ConstraintSpec("regex", "a+")
    assert spec != ConstraintSpec("regex", "a+", after_thinking=False)
    assert len({SamplingParams(constraint=spec), SamplingParams(constraint=spec), SamplingParams()}) == 2
