"""Following a run: bounded output, limits, and ends that no program can put off. The programs run without isolation here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from ms4_evals.sandbox import watch
from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.unsafe import UnsafeChild, UnsafeSandbox
from ms4_evals.sandbox.watch import Output, Watch


def run(program: str, **limits):
    with UnsafeSandbox() as sandbox:
        return sandbox.run({"main.py": program.encode()}, ("-I", "-S", "main.py"), limits=Limits(**limits))


def test_output_is_kept_up_to_the_bound_and_not_a_byte_more():
    assert run("print('x' * 99999)", output_bytes=100_000).stdout == b"x" * 99_999 + b"\n"
    outcome = run("print('x' * 100000)", output_bytes=100_000)
    assert (outcome.status, len(outcome.stdout)) == ("output", 100_000)


def test_the_end_of_standard_error_is_kept():
    outcome = run("import sys\nsys.stderr.write('a' * 100000 + 'the end')")
    assert outcome.status == "exited"
    assert len(outcome.stderr) == 64 * 1024
    assert outcome.stderr.endswith(b"the end")


def test_output_arrives_whole_though_the_program_ends_at_once():
    for _ in range(5):
        outcome = run("import os\nfor _ in range(16):\n    os.write(1, b'x' * 4096)\nos._exit(3)")
        assert (outcome.exit_code, len(outcome.stdout)) == (3, 65536)


def test_times_and_memory_are_those_of_the_program():
    outcome = run("import time\nkept = bytearray(b'x') * (40 << 20)\ntime.sleep(0.3)\nwhile time.process_time() < 0.2: pass")
    assert 0.4 < outcome.wall_seconds < 5
    assert 0.2 <= outcome.cpu_seconds < 0.6
    assert 40 << 20 < outcome.peak_bytes < 80 << 20


def test_the_first_limit_passed_is_named():
    assert run("import time\ntime.sleep(30)", wall_seconds=0.2).status == "wall-time"
    assert run("while True: pass", cpu_seconds=0.2, wall_seconds=20).status == "cpu-time"
    assert run("import time\nkept = bytearray(b'x') * (90 << 20)\ntime.sleep(30)", memory_bytes=60 << 20).status == "memory"


def test_a_limit_passed_between_two_looks_counts(monkeypatch):
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 60.0)
    assert run("kept = bytearray(b'x') * (90 << 20)", memory_bytes=60 << 20).status == "memory"
    assert run("import time\nwhile time.process_time() < 0.3: pass", cpu_seconds=0.2).status == "cpu-time"


class Silent(UnsafeChild):
    """A sandbox that never starts its program."""

    def keeper(self):
        return None


def silent(command: list[str], folder) -> Silent:
    import os

    (out, out_end), (err, err_end), (report, report_end) = os.pipe(), os.pipe(), os.pipe()
    process = subprocess.Popen(command, stdout=out_end, stderr=err_end, pass_fds=[report_end])
    for end in (out_end, err_end, report_end):
        os.close(end)
    return Silent(process, out, err, report, folder)


def test_a_sandbox_that_does_not_start_is_no_fault_of_the_program(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "STARTUP_SECONDS", 0.2)
    begun = time.monotonic()
    outcome = Watch(silent(["sleep", "60"], tmp_path / "a"), Limits()).follow()
    assert outcome.status == "sandbox-error"
    assert time.monotonic() - begun < 10
    code = "import sys; sys.stderr.write('cannot mount'); sys.exit(1)"
    outcome = Watch(silent([sys.executable, "-I", "-S", "-c", code], tmp_path / "b"), Limits()).follow()
    assert (outcome.status, outcome.stderr) == ("sandbox-error", b"cannot mount")


def test_lines_are_taken_as_they_come():
    output = Output()
    assert output.take_line(0.01) is None
    output.add(b"a\nb")
    assert output.take_line(0) == b"a\n"
    assert output.take_line(0.01) is None
    threading.Timer(0.05, output.add, [b"c\nrest"]).start()
    assert output.take_line(5) == b"bc\n"
    output.complete()
    assert output.take_line(5) == b"rest"
    assert output.take_line(5) is None


@pytest.mark.parametrize("data", [b"", b"ended\n", b"files\nended 9 0.5 100\n", b"failed x: y\n"])
def test_reports(data):
    found = watch._parsed(data) if data != b"ended\n" else None
    expected = {
        b"": (None, 0.0, 0, False, None),
        b"ended\n": None,
        b"files\nended 9 0.5 100\n": (9, 0.5, 102_400, True, None),
        b"failed x: y\n": (None, 0.0, 0, False, b"x: y"),
    }
    assert found == expected[data]


def test_a_kill_by_a_machine_without_memory_is_a_failure_of_the_sandbox(monkeypatch):
    """A program that kills itself stands in for one that the kernel kills; only the kernel's count tells the two apart."""
    program = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert run(program).status == "signalled", "control: nobody else was killed"
    counts = iter([3, 4])
    monkeypatch.setattr(watch, "kills_for_memory", lambda: next(counts))
    outcome = run(program)
    assert outcome.status == "sandbox-error"
    assert b"ran out of memory" in outcome.stderr


def test_the_kernels_count_of_kills(tmp_path):
    assert watch.kills_for_memory() >= 0
    table = tmp_path / "vmstat"
    assert watch.kills_for_memory(str(table)) == 0
    table.write_text("nr_free_pages 1\noom_kill 12\noom_kill_x 5\n")
    assert watch.kills_for_memory(str(table)) == 12
    table.write_bytes(b"\xff")
    assert watch.kills_for_memory(str(table)) == 0
