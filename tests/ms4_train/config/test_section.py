"""Every section refuses what it does not know."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ms4_train.config.section import Section


class Example(Section):
    rate: float = 1.0


@pytest.mark.parametrize("values", [{"rte": 1.0}, {"rate": float("nan")}, {"rate": float("inf")}])
def test_unknown_keys_and_numbers_that_are_none(values) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(values)


def test_values_stay() -> None:
    with pytest.raises(ValidationError):
        Example().rate = 2.0  # type: ignore[misc]
