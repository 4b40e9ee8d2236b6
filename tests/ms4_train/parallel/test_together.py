"""Errors that all ranks raise. One process here; on ranks: ``tests/recipes/ms4_recipes/test_evaluate_ranks.py``."""

from __future__ import annotations

from typing import Any

import pytest

from ms4_train.errors import DiskFullError, EngineError, MS4Error
from ms4_train.parallel import Mesh
from ms4_train.parallel.together import error_passed_on, error_told, everyone, main_only


class Told(Mesh):
    """A rank of two, of which the other one tells what the test says."""

    other: Any = None

    def all_gather_json(self, value: Any) -> list[Any]:
        return [value, self.other] if self.rank == 0 else [self.other, value]


def test_one_process_raises_what_it_has_and_returns_what_it_made():
    assert everyone(Mesh(), lambda: 5) == 5
    with pytest.raises(EngineError) as raised:
        everyone(Mesh(), _fail)
    assert not raised.value.on_all_ranks
    with pytest.raises(EngineError):
        main_only(Mesh(), _fail)


def test_a_rank_raises_its_own_error_or_that_of_another():
    with pytest.raises(EngineError, match="mine") as raised:
        everyone(Told(0, 2), _fail)
    assert raised.value.on_all_ranks
    rank = Told(1, 2)
    object.__setattr__(rank, "other", error_told(DiskFullError("full")))
    with pytest.raises(MS4Error, match="rank 0 has stopped: full") as raised:
        main_only(rank, _fail)
    assert raised.value.on_all_ranks
    assert raised.value.exit_code == 75


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(9), 9), (SystemExit("x"), 1), (ValueError("x"), 1)])
def test_errors_of_other_kinds_travel_with_an_exit_code(error, code):
    assert error_passed_on(error_told(error), rank=0).exit_code == code


def _fail() -> None:
    raise EngineError("mine")
