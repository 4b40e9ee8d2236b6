"""Attacks on whoever runs them, as data: programs that reach for the machine, its network, its processes and its memory.

Each is run inside the sandbox, where it must come to nothing and end in exactly the way written here, and outside, on targets of its own
(``hostile_host.py``), where it must succeed: an attack that never works proves nothing. Attacks on graders: ``hostile_programs_cheats.py``.
The task that all of them pretend to solve is to print twice the number read, of which 84 is the answer that nobody tells them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.hostile_host import Result, Targets

from ms4_evals.sandbox.base import Limits, Outcome, Status

MB = 1 << 20
STDIN = b"42\n"
EXPECTED = b"84\n"
LIMITS = Limits(wall_seconds=8.0, cpu_seconds=4.0, memory_bytes=64 * MB, processes=8, file_bytes=4 * MB, output_bytes=MB, open_files=64)
SHORT = Limits(wall_seconds=0.4, cpu_seconds=4.0, memory_bytes=64 * MB, processes=8, file_bytes=4 * MB, output_bytes=MB, open_files=64)

PRELUDE = "import json, os, sys\nfacts = json.load(open('facts.json'))\n"
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass(frozen=True)
class Attack:
    """One program.

    Attributes:
        status: how it ends in the sandbox; ``code`` is then its exit code, or the signal.
        succeeds: outside, whether it did what it wanted.
        hurts_only_itself: inside it may do the same.
        parent: outside it runs below a process of its own, which it may harm.
        machine: the only kind of processor whose numbers of system calls it knows.
    """

    name: str
    source: str
    status: Status = "exited"
    code: int | None = 0
    succeeds: Callable[[Targets, Result], bool] = lambda targets, result: b"DONE" in result.stdout
    limits: Limits = LIMITS
    hurts_only_itself: bool = False
    parent: bool = False
    machine: str | None = None

    @property
    def program(self) -> bytes:
        return (PRELUDE + self.source).encode()


def verdict(outcome: Outcome, expected: bytes = EXPECTED) -> str:
    """What a grader of standard output says."""
    if outcome.status == "exited" and outcome.exit_code == 0:
        return "accepted" if outcome.stdout.split() == expected.split() else "wrong-answer"
    classes = {"exited": "runtime-error", "signalled": "runtime-error", "wall-time": "time-limit", "cpu-time": "time-limit"}
    classes |= {"memory": "memory-limit", "output": "output-limit"}
    return classes.get(outcome.status, outcome.status)


def changed(targets: Targets, result: Result) -> bool:
    return targets.was_changed()


def read(targets: Targets, result: Result) -> bool:
    return targets.secret.encode() in result.stdout


def called(targets: Targets, result: Result) -> bool:
    return targets.was_called()


def printed_more_than(bound: float) -> Callable[[Targets, Result], bool]:
    """The number that the program prints last: how far a bomb came. ``bound`` is what the sandbox allows."""
    return lambda targets, result: bool(result.stdout.split()) and float(result.stdout.split()[-1]) > bound


def lasted(targets: Targets, result: Result) -> bool:
    return result.answered and result.seconds > 1.0


FILES = (
    Attack(
        "reload-os-system",
        """
import importlib
importlib.reload(os)
os.system('echo x > ' + facts['canary'])
""",
        succeeds=changed,
    ),
    Attack(
        "spawned-shell",
        "os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'echo x > ' + facts['canary']], {}), 0)",
        code=1,
        succeeds=changed,
    ),
    Attack("write-by-descriptor", "os.write(os.open(facts['canary'], os.O_WRONLY), b'x')", code=1, succeeds=changed),
    Attack("read-file", "print(open(facts['canary']).read())", code=1, succeeds=read),
    Attack("read-passwords", "print('DONE' if 'root:' in open('/etc/passwd').read() else '')", code=1),
    Attack("hard-link", "os.link(facts['canary'], 'x')\nopen('x', 'w').write('x')", code=1, succeeds=changed),
    Attack(
        "symbolic-link",
        "os.symlink(facts['canary'], 'result')\nopen('result', 'a').write('x')",
        code=1,
        succeeds=changed,
    ),
    Attack(
        "link-for-the-host",
        "os.symlink(facts['canary'], 'result')\nprint('a host that reads result.txt from the working folder reads what it points at')",
        succeeds=lambda targets, result: (targets.work / "result").is_file() and (targets.work / "result").read_text() == targets.secret,
    ),
    Attack(
        "race-in-tmp",
        """
import threading, time
name = os.path.join(facts['folder'], 'race')
for turn in range(200):
    open(name, 'w').close()
    os.unlink(name)
    os.symlink(facts['canary'], name)
    open(name, 'a').write('x')
    os.unlink(name)
""",
        code=1,
        succeeds=changed,
    ),
    Attack(
        "inherited-descriptors",
        """
for number in range(3, 1024):
    try:
        print(os.read(os.open('canary', os.O_RDONLY, dir_fd=number), 99))
    except OSError:
        pass
""",
        succeeds=read,
    ),
    Attack(
        "overwrites-the-library",
        """
path = facts['library'] or os.__file__
os.chmod(path, 0o666)
open(path, 'a').write('x')
""",
        code=1,
        succeeds=changed,
    ),
    Attack(
        "plants-startup-file",
        """
path = os.path.expanduser('~/.local/lib/python3.11/site-packages')
os.makedirs(path)
open(path + '/usercustomize.py', 'w').write('x')
""",
        succeeds=lambda targets, result: any(targets.folder.glob(".local/lib/*/*/usercustomize.py")),
    ),
    Attack(
        "leaves-shared-memory",
        "open('/dev/shm/' + facts['marker'], 'w').write('x')",
        succeeds=lambda targets, result: Path("/dev/shm", targets.marker).exists(),
    ),
    Attack(
        # Whoever looks into the folder by name meanwhile cannot.
        "closes-its-folder",
        "import time\nos.chmod('.', 0)\ntime.sleep(0.2)",
        succeeds=lambda targets, result: targets.work.stat().st_mode & 0o777 == 0,
    ),
    Attack("reads-environment", "print(dict(os.environ))", succeeds=read),
)

NETWORK = (
    Attack("tcp", "import socket\nsocket.create_connection(('127.0.0.1', facts['tcp']), 2)", code=1, succeeds=called),
    Attack(
        "udp",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', facts['udp']))",
        code=1,
        succeeds=called,
    ),
    Attack("unix-socket", "import socket\nsocket.socket(socket.AF_UNIX).connect(facts['unix'])", code=1, succeeds=called),
    Attack("abstract-socket", "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + facts['marker'])", code=1, succeeds=called),
    Attack(
        "netlink",
        """
import socket
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).bind((0, 0))
print('DONE')
""",
        code=1,
    ),
)

PROCESSES = (
    Attack("proc-environ", "print(open(f\"/proc/{facts['victim']}/environ\").read())", code=1, succeeds=read),
    Attack("proc-root", "print(open(f\"/proc/{facts['victim']}/root\" + facts['canary']).read())", code=1, succeeds=read),
    Attack("proc-folder", "print(open(f\"/proc/{facts['victim']}/cwd/canary\").read())", code=1, succeeds=read),
    Attack(
        "parent-memory",
        "open(f'/proc/{os.getppid()}/mem', 'r+b', buffering=0)\nprint('DONE')",
        code=1,
        parent=True,
    ),
    Attack("ptrace", LIBC + "print('DONE' if libc.ptrace(0, 0, 0, 0) == 0 else '')"),
    Attack(
        "reads-memory-of-processes",
        LIBC
        + """
import ctypes as c
text = c.create_string_buffer(b'DONE')
copy = c.create_string_buffer(5)
pair = lambda at: (c.c_void_p * 2)(c.addressof(at), 4)
libc.process_vm_readv(os.getpid(), pair(copy), c.c_ulong(1), pair(text), c.c_ulong(1), c.c_ulong(0))
print(copy.value)
""",
    ),
    Attack(
        "kills-everybody",
        "os.kill(facts['kill'], 9)",
        # Nobody else is there to be killed.
        code=1,
        succeeds=lambda targets, result: targets.was_killed(),
    ),
    Attack(
        "kills-parent",
        "os.kill(os.getppid(), 9)",
        parent=True,
        succeeds=lambda targets, result: result.returncode == -9,
    ),
    Attack(
        "interrupts-parent",
        """
import signal
parent = os.getppid()
for number in sorted(set(signal.Signals) - {9, 19}):
    try:
        os.kill(parent, number)
    except ProcessLookupError:
        pass
""",
        parent=True,
        succeeds=lambda targets, result: (result.returncode or 0) < 0,
    ),
    Attack(
        "starves-parent",
        """
import resource
resource.prlimit(os.getppid(), resource.RLIMIT_AS, (0, 0))
print('DONE')
""",
        code=1,
        parent=True,
    ),
    Attack(
        "daemon",
        """
import time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 3)
    time.sleep(30)
    os._exit(0)
time.sleep(0.1)
""",
        succeeds=lambda targets, result: bool(targets.left_running()),
    ),
    Attack(
        "grandchild-holds-the-pipe",
        """
import time
if not os.fork():
    time.sleep(facts['seconds'])
    os._exit(0)
""",
        succeeds=lasted,
    ),
    Attack(
        "stops-itself",
        "import signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "wall-time",
        None,
        limits=SHORT,
        succeeds=lambda t, r: not r.answered,
    ),
    Attack(
        "sleeps",
        """
import signal, time
for number in (14, 15, 24, 2):
    signal.signal(number, signal.SIG_IGN)
signal.alarm(0)
time.sleep(facts['seconds'])
""",
        "wall-time",
        None,
        limits=SHORT,
        succeeds=lasted,
    ),
    Attack(
        "never-dies-of-exceptions",
        """
import time
end = time.monotonic() + facts['seconds']
while time.monotonic() < end:
    try:
        time.sleep(0.01)
    except BaseException:
        pass
""",
        "wall-time",
        None,
        limits=SHORT,
        succeeds=lasted,
    ),
)

KERNEL = (
    Attack(
        "mounts-in-new-namespaces",
        LIBC
        + """
os.mkdir('m')
if libc.unshare(0x10020000) == 0 and libc.mount(b'none', b'm', b'tmpfs', 0, None) == 0:
    print('DONE')
""",
    ),
    Attack(
        "chroot",
        LIBC
        + """
libc.unshare(0x10000000)
os.mkdir('m')
os.chroot('m')
print('DONE')
""",
        code=1,
    ),
    Attack("key-ring", LIBC + "print('DONE' if libc.syscall(248, b'user', b'k', b'v', 1, -2) > 0 else '')", machine="x86_64"),
    Attack(
        "performance-events",
        LIBC + "event = ctypes.create_string_buffer(b'\\1' + bytes(3) + b'\\x40' + bytes(123))\n"
        "print('DONE' if libc.syscall(298, event, 0, -1, -1, 0) >= 0 else '')",
        machine="x86_64",
    ),
    Attack(
        "bpf",
        LIBC + "table = ctypes.create_string_buffer(b'\\2\\0\\0\\0\\4\\0\\0\\0\\4\\0\\0\\0\\1' + bytes(60))\n"
        "print('DONE' if libc.syscall(321, 0, table, 72) >= 0 else '')",
        machine="x86_64",
    ),
    Attack(
        "calls-of-32-bit",
        """
import ctypes, mmap
room = mmap.mmap(-1, 4096, prot=7)
room.write(bytes.fromhex('b814000000cd80c3'))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(room)))
print('DONE' if call() == os.getpid() else '')
""",
        "signalled",
        int(signal.SIGSYS),
        machine="x86_64",
    ),
)
