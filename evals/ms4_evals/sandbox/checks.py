"""The programs of the conformance suite: what each tries inside a sandbox, and what must hold afterwards.

A program finds what it needs to know of the host in ``facts.json`` and prints what it managed. Most print nothing when all walls hold.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_checks.py``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from ms4_evals.sandbox.base import Limits, Outcome, Status

_MB = 1 << 20
_QUICKLY = Limits(wall_seconds=5.0, cpu_seconds=3.0, memory_bytes=256 * _MB, processes=8, file_bytes=4 * _MB, output_bytes=_MB)


def _prints(text: bytes) -> Callable[[Outcome], str | None]:
    """The program ends well and prints ``text``."""

    def holds(outcome: Outcome) -> str | None:
        if (outcome.status, outcome.exit_code) != ("exited", 0):
            return f"{outcome.status} {outcome.exit_code}: {outcome.stderr[-500:].decode(errors='replace').strip()}"
        return None if outcome.stdout == text else f"it printed {outcome.stdout[:200]!r}"

    return holds


def _ends(status: Status, *, signalled: int | None = None, exit_code: int | None = None) -> Callable[[Outcome], str | None]:
    def holds(outcome: Outcome) -> str | None:
        expected = (status, exit_code, signalled)
        found = (outcome.status, outcome.exit_code, outcome.signal)
        return None if found == expected else f"ended as {found}, expected {expected}: {outcome.stderr[-300:].decode(errors='replace')}"

    return holds


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: stable.
        guards: what the check is about, for people.
        program: Python source.
        holds: from the outcome to what is wrong; None when all is well.
        slack_seconds: how much longer than the wall limit the run may take.
    """

    name: str
    guards: str
    program: str
    holds: Callable[[Outcome], str | None] = field(default_factory=lambda: _prints(b""))
    stdin: bytes = b""
    limits: Limits = _QUICKLY
    slack_seconds: float = 1.0


_FACTS = "import json, os, sys\nfacts = json.load(open('facts.json'))\n"
_SYSCALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

CHECKS = (
    Check(
        "runs",
        "a program reads standard input and writes standard output",
        """
import sys
print(sys.stdin.read().upper(), end='')
print(open('/dev/null').read(), end='')
""",
        _prints("GRÜSSE\n".encode()),
        "grüsse\n".encode(),
    ),
    Check("exit-code", "an exit code is not taken for a signal", "import os\nos._exit(139)", _ends("exited", exit_code=139)),
    Check(
        "signal",
        "a signal is not taken for an exit code",
        "import os\nos.kill(os.getpid(), 11)",
        _ends("signalled", signalled=int(signal.SIGSEGV)),
    ),
    Check(
        "host-files",
        "no file of this machine can be read",
        _FACTS
        + """
for path in facts['secret_files'] + ['/etc/passwd', '/etc/hostname', '/proc/1/environ', '/proc/keys']:
    try:
        text = open(path).read()
    except OSError:
        text = ''
    if text:
        print('read', path)
""",
    ),
    Check(
        "host-writes",
        "nothing outside the working folder can be written",
        _FACTS
        + """
for path in facts['secret_files'] + ['/', '/dev', '/usr/lib', '/python', os.path.dirname(os.__file__), os.__file__]:
    if os.access(path, os.W_OK):
        print('can write', path)
""",
    ),
    Check(
        "network",
        "no listener of this machine and no other machine can be reached",
        _FACTS
        + """
import socket
for family, address in ((2, ('127.0.0.1', facts['port'])), (2, ('192.0.2.1', 9)), (1, facts['abstract'])):
    try:
        with socket.socket(family) as end:
            end.settimeout(0.3)
            end.connect(tuple(address) if family == 2 else '\\0' + address)
            print('connected', address)
    except OSError:
        pass
""",
    ),
    Check(
        "environment",
        "no variable of ours is passed on",
        _FACTS + "print(*[name for name, value in os.environ.items() if facts['secret'] in value], end='')",
    ),
    Check(
        "processes-hidden",
        "no process of this machine can be seen or signalled",
        _FACTS
        + """
try:
    os.kill(facts['pid'], 0)
    print('reached', facts['pid'])
except OSError:
    pass
seen = [name for name in (os.listdir('/proc') if os.path.isdir('/proc') else []) if name.isdigit()]
print(*(seen if len(seen) > 3 else ()), end='')
""",
    ),
    Check(
        "privileges",
        "a program has no rights and can gain none",
        _SYSCALL
        + """
import os
if os.getuid() == 0:
    print('root')
if not libc.unshare(0x10000000):
    print('user namespace')
if not libc.mount(b'none', b'/box', b'tmpfs', 0, None):
    print('mount')
if not libc.ptrace(16, 1, 0, 0):
    print('ptrace')
try:
    os.setuid(0)
    print('setuid')
except OSError:
    pass
""",
    ),
    Check(
        "wall-time",
        "time on the clock is bounded",
        "import time\ntime.sleep(60)",
        _ends("wall-time"),
        limits=Limits(wall_seconds=0.4, cpu_seconds=5.0),
    ),
    Check(
        "cpu-time",
        "processor time is bounded over all processes",
        """
import os
os.fork()
os.fork()
while True:
    pass
""",
        _ends("cpu-time"),
        limits=Limits(wall_seconds=20.0, cpu_seconds=0.3),
    ),
    Check(
        "memory",
        "memory of one process is bounded",
        """
kept = []
while True:
    kept.append(bytes(1 << 20))
""",
        _ends("memory"),
        limits=Limits(memory_bytes=80 * _MB),
    ),
    Check(
        "memory-refused",
        "an allocation past the limit is refused",
        "bytearray(1 << 40)",
        _ends("memory"),
    ),
    Check(
        "memory-of-children",
        "memory is bounded over all processes",
        """
import os, time
os.fork()
os.fork()
kept = bytearray(b'x') * (40 << 20)
time.sleep(30)
""",
        _ends("memory"),
        limits=Limits(wall_seconds=20.0, memory_bytes=100 * _MB),
    ),
    Check(
        "processes",
        "the number of processes is bounded",
        """
import os, time
started = 0
try:
    while started < 100:
        if not os.fork():
            time.sleep(30)
        started += 1
except OSError:
    pass
print(started)
""",
        _prints(b"7\n"),
    ),
    Check(
        "file-size",
        "one file is bounded",
        """
import os
try:
    with open('x', 'wb') as file:
        for _ in range(16):
            file.write(bytes(1 << 20))
except OSError:
    pass
print(os.path.getsize('x') <= 4 << 20)
""",
        _prints(b"True\n"),
    ),
    Check(
        "files-together",
        "all files together are bounded",
        """
try:
    for number in range(16):
        with open(str(number), 'wb') as file:
            file.write(bytes(1 << 20))
    print('wrote 16 MB')
except OSError:
    pass
""",
    ),
    Check(
        "output",
        "output is bounded",
        """
import sys
while True:
    sys.stdout.write('x' * 65536)
""",
        _ends("output"),
    ),
    Check(
        "open-files",
        "descriptors are bounded",
        """
kept = []
try:
    while len(kept) < 1000:
        kept.append(open('/dev/null'))
    print(len(kept))
except OSError:
    pass
""",
    ),
    Check(
        "descendants",
        "a run is over when the program ends, whoever still holds its output",
        """
import os, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(30)
print('over')
""",
        _prints(b"over\n"),
        limits=Limits(wall_seconds=3.0),
        slack_seconds=0.0,
    ),
    Check(
        "fresh-folder",
        "a run finds no trace of another",
        """
import os
print(*set(os.listdir('.')) - {'main.py', 'facts.json'}, end='')
open('trace', 'w').close()
""",
    ),
)
"""``fresh-folder`` runs twice, see ``conformance.py``."""

OPENING_CHECKS = ("runs", "host-files", "network", "processes", "file-size", "wall-time")
"""Proved every time a sandbox is opened: quick, and each stands for one mechanism."""
