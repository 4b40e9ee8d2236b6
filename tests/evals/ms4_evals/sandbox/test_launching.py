"""What all sandboxes share, on one that starts nothing and on the one without walls."""

import os

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
