"""Sampling parameters and requests refuse what the engine could not serve, naming the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ms4_train.errors import EngineError
from ms4_train.inference import GenerationRequest, SamplingParams


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
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("stop", ("",)),
        ("stop", "text"),
        ("stop", [1]),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", [2]),
    ],
)
def test_bad_sampling_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(EngineError) as caught:
        SamplingParams(**{key: value})
    assert caught.value.key == key
    assert caught.value.fix


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0, "top_p": 1},
        {"temperature": 5.0, "top_p": 1e-9, "seed": 2**63 - 1, "max_tokens": 1, "stop": ("a", "\n\n"), "stop_token_ids": (0, 2)},
    ],
)
def test_the_edges_of_the_ranges_are_accepted(values: dict) -> None:
    params = SamplingParams(**values)
    for key, value in values.items():
        assert getattr(params, key) == value


@pytest.mark.parametrize("prompt_ids", [(), [1, 2], (1, -1), (1, 2.0), (True,)])
def test_prompts_that_are_not_token_ids_are_refused(prompt_ids: Any) -> None:
    with pytest.raises(EngineError) as caught:
        GenerationRequest("row-7", prompt_ids)
    assert caught.value.key == "row-7"


def test_requests_do_not_change_after_they_are_made() -> None:
    request = GenerationRequest("a", (1, 2))
    with pytest.raises(AttributeError):
        request.prompt_ids = (3,)  # pyright: ignore[reportAttributeAccessIssue]
