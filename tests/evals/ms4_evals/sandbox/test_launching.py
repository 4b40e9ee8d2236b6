"""What all sandboxes share, on one that starts nothing and on the one without walls."""

import os
import threading
import time

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launching import LaunchingSandbox
from ms4_evals.sandbox.unsafe import UnsafeSandbox


class Failing(LaunchingSandbox):
    """Nothing starts; the descriptor that it was given is its own to close."""

    def _launch(self, files, arguments, stdin, limits):
        os.close(stdin)
        raise OSError("no more processes")


def test_what_does_not_start_is_the_sandboxes_failure():
    outcome = Failing().run({"main.py": b""}, ("main.py",))
    assert outcome.status == "sandbox-error"
    assert b"no more processes" in outcome.stderr
    assert (outcome.exit_code, outcome.stdout) == (None, b"")


def test_closing_ends_the_sessions_that_are_open_and_forgets_the_others():
    program = {"main.py": b"print('ready', flush=True)\nimport time\ntime.sleep(60)"}
    with UnsafeSandbox() as sandbox:
        first = sandbox.start(program, ("main.py",), limits=Limits())
        assert first.read_line(20) == b"ready\n"
        first.close()
        second = sandbox.start(program, ("main.py",), limits=Limits())
        assert second.read_line(20) == b"ready\n"
        assert second.is_open
    assert not first.is_open
    assert not second.is_open


def test_closing_ends_runs_in_other_threads_and_starts_nothing_more():
    sandbox, outcomes = UnsafeSandbox(), []
    limits = Limits(wall_seconds=60)
    program = {"main.py": b"import time\ntime.sleep(60)"}
    threads = [threading.Thread(target=lambda: outcomes.append(sandbox.run(program, ("main.py",), limits=limits))) for _ in range(3)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    sandbox.close()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 20
    assert {outcome.exit_code for outcome in outcomes} == {None}, "none is taken for one that ended by itself"
    assert sandbox.run(program, ("main.py",)).status == "sandbox-error"
    assert sandbox.start(program, ("main.py",)).close().status == "sandbox-error"
