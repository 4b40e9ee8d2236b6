"""The clock of a process that was stopped, where a thread stands, and how a process ends."""

import importlib.util
import os
import sys
import threading
import time

import pytest
from support.forks import fork, wait

from ms4_train.errors import RankLostError
from ms4_train.parallel import watch_thread
from ms4_train.parallel.watch_thread import Clock, main_thread_line, shortened


def test_a_long_pause_counts_as_a_short_one():
    clock = Clock(most=0.1)
    first = clock.advance()
    time.sleep(0.5)
    assert clock.advance() - first == pytest.approx(0.1)
    time.sleep(0.03)
    assert 0.13 <= clock.now + 0.03 <= clock.advance() <= first + 0.2


def test_the_line_of_a_thread_is_where_it_stands():
    begun, go = threading.Event(), threading.Event()

    def stuck():
        begun.set()
        while not go.wait(0.01):
            pass

    thread = threading.Thread(target=stuck)
    thread.start()
    begun.wait()
    line, waits = main_thread_line(thread.ident)
    go.set()
    thread.join()
    assert line.endswith(("stuck", "wait"))
    assert not waits
    assert main_thread_line(-1) == ("", False)


def test_a_call_into_torch_distributed_counts_as_waiting(tmp_path):
    path = tmp_path / "torch" / "distributed" / "like_it.py"
    path.parent.mkdir(parents=True)
    path.write_text("def all_reduce(look):\n    return look()\n")
    spec = importlib.util.spec_from_file_location("like_it", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def look():
        return main_thread_line(threading.get_ident())[1]

    assert module.all_reduce(look)
    assert not look()


def test_messages_are_one_short_line():
    assert shortened("a\n  b\tc") == "a b c"
    assert len(shortened("x" * 5000)) == watch_thread.MAX_MESSAGE_CHARACTERS + 3


def stuck_with_output(path):
    os.dup2(os.open(path / "out", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open(path / "err", os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout = os.fdopen(1, "w", buffering=4096)
    sys.stdout.write("said before")
    threading.Thread(target=watch_thread._end_process, args=(RankLostError("rank 1 ended in save."),)).start()
    threading.Event().wait()


def test_the_end_of_a_process_waits_for_no_main_thread_and_loses_no_output(tmp_path):
    assert wait(fork(lambda: stuck_with_output(tmp_path))) == 76
    assert (tmp_path / "out").read_text() == "said before"
    assert (tmp_path / "err").read_text() == "error: rank 1 ended in save.\n"
