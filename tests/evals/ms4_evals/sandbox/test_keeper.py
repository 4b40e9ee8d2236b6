"""The keeper, run by itself: what it reports, what it leaves to the program, that it needs nothing but the interpreter."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ms4_evals.sandbox import keeper
from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launch import ADDRESS_SLACK_BYTES, keeper_command
from ms4_evals.sandbox.processes import tasks_of

LIMITS = Limits(cpu_seconds=2.5, memory_bytes=300 << 20, file_bytes=1 << 20, open_files=20)


def keep(program: str, *, python: str = sys.executable) -> tuple[list[list[str]], bytes]:
    """The report's lines, and standard output."""
    read_end, write_end = os.pipe()
    command = [python, "-I", "-S", "-c", program]
    command = keeper_command(sys.executable, write_end, LIMITS, command, is_isolated=False, processes=tasks_of(os.geteuid()) + 8)
    result = subprocess.run(command, stdout=subprocess.PIPE, pass_fds=[write_end], timeout=30, check=False, env={"A": "b"})
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        return [line.split() for line in file.read().decode().splitlines()], result.stdout


@pytest.mark.parametrize(
    ("program", "status"),
    [("", 0), ("raise SystemExit(139)", 139 << 8), ("import os; os.kill(os.getpid(), 11)", 11), ("import os; os.abort()", 6)],
)
def test_it_reports_the_wait_status(program, status):
    report, _ = keep(program)
    assert report[0] == ["started"]
    assert report[1][:2] == ["ended", str(status)]
    assert len(report) == 2


def test_it_reports_what_was_used():
    report, _ = keep("kept = bytearray(b'x') * (50 << 20)\nimport time\nwhile time.process_time() < 0.2: pass")
    cpu_seconds, peak = float(report[1][2]), int(report[1][3])
    # The program itself spun for 0.2 s; starting and ending an interpreter takes some 0.02.
    assert 0.2 <= cpu_seconds < 0.5
    assert 50 << 10 <= peak < 80 << 10


def test_it_says_when_the_program_cannot_start():
    report, _ = keep("", python="/nowhere/python")
    assert report[1][0] == "failed"
    assert "/nowhere/python" in report[1][1]


def test_what_a_program_inherits():
    program = (
        "import os, resource, signal, sys\n"
        "names = ('CPU', 'AS', 'FSIZE', 'NOFILE', 'CORE', 'STACK')\n"
        "print(*[resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0] for name in names])\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd'))))\n"
        "ignored = int(next(line for line in open('/proc/self/status') if line.startswith('SigIgn')).split()[1], 16)\n"
        "blocked = int(next(line for line in open('/proc/self/status') if line.startswith('SigBlk')).split()[1], 16)\n"
        "print(ignored & (1 << signal.SIGINT - 1), blocked, os.getsid(0) == os.getpid(), os.environ['A'])\n"
    )
    _, stdout = keep(program)
    limits, descriptors, rest = stdout.decode().splitlines()
    # Whole seconds and one more; a core of 1 byte is the value that stops even cores that are piped to a program.
    assert limits.split() == ["4", str((300 << 20) + ADDRESS_SLACK_BYTES), str(1 << 20), "20", "1", str(8 << 20)]
    # 3 is the listing itself: neither the report nor anything else came along.
    assert descriptors == "[0, 1, 2, 3]"
    assert rest == "0 0 True b"


def test_it_ends_what_the_program_leaves():
    report, stdout = keep(
        "import os, time\nnumber = os.fork()\nif not number:\n    os.setsid()\n    os.closerange(0, 3)\n    time.sleep(60)\nprint(number)"
    )
    assert report[1][:2] == ["ended", "0"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(stdout), 0)


def test_it_ends_the_program_when_told_to():
    read_end, write_end = os.pipe()
    command = keeper_command(
        sys.executable, write_end, LIMITS, ["/bin/sleep", "60"], is_isolated=False, processes=tasks_of(os.geteuid()) + 8
    )
    with subprocess.Popen(command, pass_fds=[write_end]) as process:
        os.close(write_end)
        assert os.read(read_end, 100) == b"started\n"
        # The handler is there a moment after the line.
        for _ in range(100):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode in (0, -signal.SIGTERM)
        process.kill()
    os.close(read_end)


def test_it_uses_only_what_the_interpreter_carries():
    source = Path(keeper.__file__).read_text()
    imported = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(source)))
    code = f"import sys\nbefore = set(sys.modules)\nimport {', '.join(sorted(imported))}\nprint(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    # Nothing but themselves: no module of the library is read from a file and run.
    assert set(result.stdout.split()) <= imported
