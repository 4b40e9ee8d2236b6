"""What a person sees: a bar in a terminal, a few plain lines elsewhere."""

import io

from rich.console import Console

from ms4_train.tracking import console as console_module
from ms4_train.tracking.console import ConsoleTracker

METRICS = {"loss": 1.25, "learning_rate": 1e-4, "tokens_per_second": 12345.6, "dead_experts": 3}


def make(terminal, total=100, **keys):
    stream = io.StringIO()
    return stream, ConsoleTracker(total, console=Console(file=stream, force_terminal=terminal, width=160), **keys)


def test_plain_lines_are_throttled_but_evaluations_and_the_end_show():
    stream, tracker = make(terminal=False)
    for step in range(1, 101):
        tracker.log(step, METRICS)
    tracker.log(100, {"eval_loss": 0.75})
    tracker.summary({"loss": 1.25})
    tracker.close()
    shown = stream.getvalue().splitlines()
    assert shown[0].startswith("step 1/100: loss 1.2500, learning rate 1.00e-04, tokens per second 12,346, left")
    assert "left" in shown[0]
    assert shown[1].startswith("step 100/100")
    assert shown[2] == "step 100/100: eval loss 0.7500"
    assert shown[3] == "done: loss 1.2500"
    assert len(shown) == 4


def test_lines_come_again_after_a_while(monkeypatch):
    monkeypatch.setattr(console_module, "PLAIN_SECONDS", 0.0)
    stream, tracker = make(terminal=False)
    for step in range(1, 4):
        tracker.log(step, METRICS)
    assert len(stream.getvalue().splitlines()) == 3


def test_terminal_has_a_bar_that_starts_where_the_run_resumes():
    stream, tracker = make(terminal=True, step=40)
    tracker.log(41, METRICS)
    tracker.log(41, {"eval_loss": 0.75})
    tracker.close()
    shown = stream.getvalue()
    assert "41/100" in shown
    assert "1.2500" in shown
    assert "eval loss 0.7500" in shown


def test_closing_twice_is_fine():
    _, tracker = make(terminal=True)
    tracker.close()
    tracker.close()
