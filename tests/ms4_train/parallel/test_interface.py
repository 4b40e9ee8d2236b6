"""Both engines offer what the loop asks for, under the same names."""

import inspect

import pytest

from ms4_train.parallel.deepspeed_engine import DeepSpeedEngine
from ms4_train.parallel.interface import TrainEngine
from ms4_train.parallel.local import LocalEngine

METHODS = ("backward", "step", "export_state", "import_state", "full_parameters", "whole_weights")


def test_the_interface_has_no_other_methods():
    assert {name for name, value in vars(TrainEngine).items() if inspect.isfunction(value) and not name.startswith("_")} == set(METHODS)


@pytest.mark.parametrize("engine", [LocalEngine, DeepSpeedEngine])
@pytest.mark.parametrize("method", METHODS)
def test_an_engine_takes_what_the_interface_promises(engine, method):
    assert inspect.signature(getattr(engine, method)) == inspect.signature(getattr(TrainEngine, method))
