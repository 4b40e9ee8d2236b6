"""The clock of a process that was stopped, where a thread stands, and how a process ends."""

import importlib.util
import os
import subprocess
import sys
import threading
import time

import pytest

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


def test_the_end_of_a_process_waits_for_no_lock_and_loses_no_output():
    code = (
        "import sys, threading\n"
        "from ms4_train.errors import RankLostError\n"
        "from ms4_train.parallel.watch_thread import _end_process\n"
        "print('said before', end='')\n"
        "threading.Thread(target=_end_process, args=(RankLostError('rank 1 ended in save.'),)).start()\n"
        "threading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout, done.stderr) == (76, "said before", "error: rank 1 ended in save.\n")
