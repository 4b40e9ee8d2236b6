"""Signals: remembered once, at once the second time, handlers put back."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ms4_train.parallel import Mesh
from ms4_train.training.stop import StopSignals, TrainingInterruptedError


def kill_and_sleep(number):
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_remembered_and_second_ends_at_once(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.agreed(Mesh()) == 0
        os.kill(os.getpid(), number)
        assert stop.agreed(Mesh()) == number
        started = time.monotonic()
        with pytest.raises(TrainingInterruptedError):
            kill_and_sleep(number)
        assert time.monotonic() - started < 2
    assert signal.getsignal(number) is before


def test_ranks_agree():
    class TwoRanks:
        world_size = 2

        def all_gather_json(self, value):
            return [value, signal.SIGTERM]

    assert StopSignals().agreed(TwoRanks()) == signal.SIGTERM


def test_error_has_the_exit_code_that_shells_expect():
    error = TrainingInterruptedError(signal.SIGTERM, step=3, saved=Path("out/step-000003"))
    assert error.exit_code == 143
    assert "SIGTERM after step 3" in str(error)
    assert "same command" in str(error)
    assert "no run state was saved" in str(TrainingInterruptedError(signal.SIGINT))


def test_other_threads_go_without_handlers():
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append(stop.agreed(Mesh()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
