"""Signals: remembered once during the steps, at once otherwise; handlers put back."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.forks import fork, wait

from ms4_train.parallel import Mesh
from ms4_train.training.stop import AT_ONCE_SECONDS, StopSignals, TrainingInterruptedError


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_during_the_steps_and_a_second_interrupt_ends_at_once(number):
    before = signal.getsignal(number)
    with StopSignals() as stop, stop.finishing():
        assert stop.agreed(Mesh()) == 0
        send(number)
        assert stop.agreed(Mesh()) == stop.received == number
        started = time.monotonic()
        with pytest.raises(TrainingInterruptedError, match="SIGINT, at once") as caught:
            send(signal.SIGINT)
        assert time.monotonic() - started < 2
        assert caught.value.exit_code == 130
        assert not caught.value.on_all_ranks
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_sigterm_changes_nothing():
    with StopSignals() as stop, stop.finishing():
        send(signal.SIGINT)
        for _ in range(3):
            send(signal.SIGTERM)
        assert stop.agreed(Mesh()) == signal.SIGINT
        time.sleep(AT_ONCE_SECONDS + 0.3)  # nor does the thread end the process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_outside_the_steps_the_first_signal_ends_at_once(number):
    with StopSignals() as stop:
        with stop.finishing():
            pass
        with pytest.raises(TrainingInterruptedError) as caught:
            send(number)
        assert caught.value.exit_code == 128 + number


def stubborn(path, seconds):
    """A call of C++ that is begun again after every signal, as collectives do: the error of the handler never comes out of it."""
    os.dup2(os.open(path / "errors", os.O_WRONLY | os.O_CREAT), 2)
    with StopSignals() as stop, stop.finishing():
        (path / "ready").touch()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(TrainingInterruptedError):
                time.sleep(0.1)


def test_a_main_thread_that_hears_nothing_is_ended_within_two_seconds(tmp_path):
    process = fork(lambda: stubborn(tmp_path, 60))
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    time.sleep(AT_ONCE_SECONDS + 0.5)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)  # the first one finishes the step, however long it is
    started = time.monotonic()
    os.kill(process, signal.SIGINT)
    assert wait(process) == 130
    assert time.monotonic() - started < 2.5  # two seconds, and a slow machine
    assert (tmp_path / "errors").read_text() == "error: stopped by SIGINT, at once; what was saved before stays.\n"


def test_error_has_the_exit_code_that_shells_expect():
    error = TrainingInterruptedError(signal.SIGTERM, step=3, saved=Path("out/step-000003"))
    assert error.exit_code == 143
    assert error.on_all_ranks
    assert "SIGTERM after step 3" in str(error)
    assert "same command" in str(error)
    assert "no run state was saved" in str(TrainingInterruptedError(signal.SIGINT, step=2))
    assert str(TrainingInterruptedError(signal.SIGINT)) == "stopped by SIGINT, at once; what was saved before stays."


def test_the_way_on_is_that_of_the_setting():
    def fix(resume):
        return TrainingInterruptedError(signal.SIGTERM, step=3, saved=Path("out/step-000003"), resume=resume).fix

    assert fix("auto") == "run the same command again to go on."
    assert fix("never").startswith("start again with training.resume_from_checkpoint=auto to go on; ")
    assert fix("never").endswith("the same command would begin at step 0 again.")
    assert fix("runs/a/step-000002").endswith("=auto to go on; the same command would begin from runs/a/step-000002 again.")
    assert TrainingInterruptedError(signal.SIGTERM, step=3, resume="never").fix is None


def test_ranks_agree():
    class TwoRanks:
        world_size = 2

        def all_gather_json(self, value):
            return [value, signal.SIGTERM]

    assert StopSignals().agreed(TwoRanks()) == signal.SIGTERM


def test_other_threads_go_without_handlers():
    seen = []

    def work():
        with StopSignals() as stop, stop.finishing():
            seen.append(stop.agreed(Mesh()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
