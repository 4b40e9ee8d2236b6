"""The shared fields: exact types, and the fields that are taken but not used."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ms4_train.serving.fields import UNUSED, SharedFields


def test_every_unused_field_is_accepted() -> None:
    values: dict[str, Any] = dict.fromkeys(UNUSED, "x")
    values |= {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prediction": {"type": "content", "content": "x"}}
    assert SharedFields(model="m", **values).user == "x"


def test_null_means_the_default() -> None:
    names = [name for name in SharedFields.model_fields if name != "model"]
    assert SharedFields.model_validate({"model": "m", **dict.fromkeys(names)}) == SharedFields(model="m")


def test_an_integer_may_be_written_as_a_decimal() -> None:
    assert SharedFields.model_validate({"model": "m", "n": 2.0, "seed": -5}).n == 2


@pytest.mark.parametrize("value", [1.5, "1", True, [1], 2**40])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        SharedFields.model_validate({"model": "m", "n": value})


@pytest.mark.parametrize(
    "field",
    [{"temperature": -0.1}, {"top_p": 0}, {"min_p": 2}, {"top_k": -2}, {"logit_bias": {"x": 1}}, {"stop": ["x"] * 17}, {"seed": 2**63}],
    ids=str,
)
def test_bounds(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SharedFields.model_validate({"model": "m", **field})
