"""Completion bodies: the four forms of a prompt, and OpenAI's client as the oracle of the fields."""

from __future__ import annotations

import typing

import pytest
from openai.types import completion_create_params
from pydantic import ValidationError

from ms4_train.serving.completion_fields import CompletionRequest


def test_every_field_of_openais_client_is_known() -> None:
    theirs = set(typing.get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming))
    assert theirs - set(CompletionRequest.model_fields) == set()


@pytest.mark.parametrize("prompt", ["x", "", ["a", "b"], [1, 2], [1.0, 2], [[1], [2, 3]]], ids=str)
def test_forms_of_a_prompt(prompt: object) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], ["a", 1], [1, "a"], [-1], [True], {"a": 1}, [[1], "a"]], ids=str)
def test_what_is_no_prompt(prompt: object) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
