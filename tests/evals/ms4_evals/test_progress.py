"""The progress display: right counts, bars on a terminal, silence elsewhere."""

import io

from rich.console import Console

from ms4_evals.progress import Progress


def drive(progress):
    progress.add_samples("aime_2025", "high", total=5, finished=2)
    progress.add_samples("aime_2025", "none", total=5, finished=5)
    with progress:
        progress.finish("aime_2025", "high")
        progress.tokens(100)
    return progress


def test_counts():
    assert drive(Progress()).counts() == {("aime_2025", "high"): (3, 5), ("aime_2025", "none"): (5, 5)}


def test_bars_on_a_terminal():
    out = io.StringIO()
    drive(Progress(Console(file=out, force_terminal=True, width=120)))
    shown = out.getvalue()
    assert "aime_2025 high" in shown
    assert "3/5" in shown
    assert "tokens/s" in shown


def test_silence_elsewhere():
    out = io.StringIO()
    drive(Progress(Console(file=out, force_terminal=False)))
    drive(Progress(None))
    assert out.getvalue() == ""
