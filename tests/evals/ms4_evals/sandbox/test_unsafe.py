"""No isolation, and it says so; but the limits hold and nothing is left behind."""

from __future__ import annotations

import os
import tempfile

import psutil
import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.unsafe import UnsafeSandbox


@pytest.fixture
def unsafe():
    with UnsafeSandbox() as opened:
        yield opened


def run(unsafe, program: str, stdin: bytes = b"", **limits):
    return unsafe.run({"main.py": program.encode(), "a/b.txt": b"beside"}, ("-I", "-S", "main.py"), stdin=stdin, limits=Limits(**limits))


def test_it_says_what_it_is(unsafe):
    assert unsafe.sandbox_id == "none"
    assert not unsafe.is_safe


def test_a_program_runs(unsafe):
    outcome = run(unsafe, "print(open('a/b.txt').read(), input())", b"given\n")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("exited", 0, b"beside given\n")


def test_it_keeps_nothing_from_the_program(unsafe, tmp_path):
    (tmp_path / "x").write_text("readable")
    assert run(unsafe, f"print(open({str(tmp_path / 'x')!r}).read())").stdout == b"readable\n"


def test_its_own_environment_is_not_passed_on(unsafe, monkeypatch):
    monkeypatch.setenv("MS4_A_KEY", "secret")
    assert b"secret" not in run(unsafe, "import os\nprint(os.environ)").stdout


def test_nothing_is_left(unsafe, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os, time\nnumber = os.fork()\nif not number:\n    os.setsid()\n    time.sleep(60)\nprint(number)"
    outcome = run(unsafe, program)
    assert not psutil.pid_exists(int(outcome.stdout))
    outcome = run(unsafe, program + "\ntime.sleep(60)", wall_seconds=0.4)
    assert outcome.status == "wall-time"
    assert not list(tmp_path.iterdir())
    assert not [process for process in psutil.Process().children(recursive=True) if "main.py" in process.cmdline()]


def test_too_many_processes_are_ended(unsafe):
    program = "import os, time\nfor _ in range(12):\n    if not os.fork():\n        time.sleep(60)\n        os._exit(0)\ntime.sleep(60)"
    outcome = run(unsafe, program, processes=8, wall_seconds=30)
    if os.geteuid() == 0:
        # The kernel does not count root's; the watcher does, and ends the run with a signal.
        assert (outcome.status, outcome.signal) == ("signalled", 9)
    else:
        assert outcome.status in ("signalled", "exited")


def test_a_missing_folder_for_temporary_files_is_the_sandboxs_fault(unsafe, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    outcome = run(unsafe, "")
    assert outcome.status == "sandbox-error"
    assert b"/nowhere" in outcome.stderr
