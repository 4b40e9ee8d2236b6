"""The bar shows itself on a terminal only."""

import io

import pytest
from rich.console import Console

from ms4_train.cli.bars import counting_bar


def drawn(is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=100)
    with counting_bar("comparing", console) as show:
        show(1, 4)
        show(2, 4, "layer 7, attention")
    return stream.getvalue()


def test_nothing_without_a_terminal():
    assert drawn(False) == ""


def test_share_and_what_comes_on_one():
    assert "layer 7, attention" in drawn(True)
    assert "50%" in drawn(True)


def test_it_goes_when_the_work_fails():
    with pytest.raises(ValueError, match="mine"), counting_bar("comparing"):
        raise ValueError("mine")
