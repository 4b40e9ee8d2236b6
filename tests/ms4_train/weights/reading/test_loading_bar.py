"""The bar shows for large models on a terminal, and nowhere else."""

import io

import pytest
from rich.console import Console

from ms4_train.weights.reading.loading_bar import SMALLEST_BYTES, loading_bar


@pytest.mark.parametrize(("is_terminal", "total", "shows"), [(True, SMALLEST_BYTES, True), (True, 1000, False), (False, 1 << 40, False)])
def test_where_it_shows(is_terminal, total, shows):
    out = io.StringIO()
    with loading_bar("reading m", console=Console(file=out, force_terminal=is_terminal, width=100)) as progress:
        for done in range(0, total + 1, total // 4):
            progress(done, total)
    assert ("reading m" in out.getvalue()) == shows
    assert bool(out.getvalue()) == shows or out.getvalue().strip() == ""


def fail_at_the_start(console):
    with loading_bar("reading m", console=console) as progress:
        progress(1, SMALLEST_BYTES)
        raise OSError


def test_it_is_taken_away_when_reading_fails():
    out = io.StringIO()
    with pytest.raises(OSError):
        fail_at_the_start(Console(file=out, force_terminal=True))
    assert out.getvalue().endswith("\x1b[2K")  # the line is cleared
