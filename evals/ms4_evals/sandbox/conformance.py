"""One suite that any sandbox must pass: hostile programs are really run, and what they did is looked at from this side.

The programs are in ``checks.py``. This side holds what they must not reach: files with a secret, a listener, an abstract socket, a
variable. ``UnsafeSandbox`` fails it, which shows that the programs can tell. For tests, for ``ms4 doctor``, and a part for every opening.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_conformance.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.sandbox.base import Limits, Sandbox
from ms4_evals.sandbox.checks import CHECKS, Check

_SECRET_VARIABLE = "MS4_SANDBOX_CHECK"
_ECHO = b"while True:\n    print(input()[::-1], flush=True)\n"


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold."""

    check: str
    guards: str
    problem: str

    def __str__(self) -> str:
        return f"{self.check} ({self.guards}): {self.problem}"


class _Host:
    """What programs try to reach, and whether they did."""

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(16)
        self._file = folder / "secret"
        self._file.write_text(self.secret)
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._unix = socket.socket(socket.AF_UNIX)
        self._abstract = f"ms4-{self.secret}"
        self._unix.bind("\0" + self._abstract)
        self._unix.listen()
        for end in (self._tcp, self._unix):
            end.setblocking(False)

    def facts(self) -> bytes:
        """What a program is told."""
        facts = {
            "secret": self.secret,
            "secret_files": [str(self._file), str(Path(__file__).resolve()), f"/proc/{os.getpid()}/environ"],
            "port": self._tcp.getsockname()[1],
            "abstract": self._abstract,
            "pid": os.getpid(),
        }
        return json.dumps(facts).encode()

    def problems(self) -> Iterator[str]:
        """What was reached, seen from this side."""
        for name, end in (("TCP listener", self._tcp), ("abstract socket", self._unix)):
            with contextlib.suppress(BlockingIOError):
                end.accept()[0].close()
                yield f"a connection reached our {name}"
        if self._file.read_text() != self.secret:
            yield "our file was changed"

    def close(self) -> None:
        self._tcp.close()
        self._unix.close()


@contextlib.contextmanager
def _variable(value: str) -> Iterator[None]:
    os.environ[_SECRET_VARIABLE] = value
    try:
        yield
    finally:
        del os.environ[_SECRET_VARIABLE]


def check_sandbox(sandbox: Sandbox, names: Collection[str] | None = None, *, workers: int = 2) -> list[Finding]:
    """Runs the suite, or the checks called ``names``; an empty list means that everything held."""
    chosen = [check for check in CHECKS if names is None or check.name in names]
    with tempfile.TemporaryDirectory(prefix="ms4-check-") as folder:
        # Readable by everybody, so that what protects it is the sandbox.
        Path(folder).chmod(0o755)
        host = _Host(Path(folder))
        try:
            with _variable(host.secret), ThreadPoolExecutor(workers) as pool:
                found = [finding for findings in pool.map(lambda check: _run(sandbox, check, host), chosen) for finding in findings]
            found += [Finding("host", "nothing on this side was reached", problem) for problem in host.problems()]
        finally:
            host.close()
    if names is None or "session" in names:
        found += _check_session(sandbox)
    return found


def _run(sandbox: Sandbox, check: Check, host: _Host) -> list[Finding]:
    files = {"main.py": check.program.encode(), "facts.json": host.facts()}
    found = []
    for _ in range(2 if check.name == "fresh-folder" else 1):
        begun = time.monotonic()
        outcome = sandbox.run(files, ("-I", "main.py"), stdin=check.stdin, limits=check.limits)
        seconds = time.monotonic() - begun
        problem = check.holds(outcome)
        if problem is None and outcome.wall_seconds > check.limits.wall_seconds + check.slack_seconds:
            problem = f"took {seconds:.1f} s with a limit of {check.limits.wall_seconds:g} s"
        if problem is not None:
            found.append(Finding(check.name, check.guards, problem))
    return found


def _check_session(sandbox: Sandbox) -> list[Finding]:
    guards = "a program can be talked to, and ends when it is no longer"
    session = sandbox.start({"main.py": _ECHO}, ("-I", "main.py"), limits=Limits(wall_seconds=5.0))
    answers = []
    for text in (b"abc\n", b"xyz\n"):
        session.send(text)
        answers.append(session.read_line(5.0))
    silence = session.read_line(0.05)
    outcome = session.close()
    if answers != [b"cba\n", b"zyx\n"] or silence is not None:
        return [Finding("session", guards, f"answered {answers}, then {silence}: {outcome.stderr[-300:]!r}")]
    if (outcome.status, outcome.exit_code) != ("exited", 1):
        return [Finding("session", guards, f"ended as {outcome.status} {outcome.exit_code} at the end of its input")]
    return []
