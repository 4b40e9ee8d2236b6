"""Attacks that use up what a machine has. Inside they have no end; outside they stop soon after what the sandbox would have allowed."""

from __future__ import annotations

from support.hostile_programs import LIBC, LIMITS, MB, Attack, printed_more_than

from ms4_evals.sandbox.base import Limits

SPINNING = Limits(wall_seconds=20.0, cpu_seconds=0.3, memory_bytes=64 * MB, processes=8, file_bytes=4 * MB, output_bytes=MB, open_files=64)
BRIEF = Limits(wall_seconds=1.0, cpu_seconds=4.0, memory_bytes=64 * MB, processes=8, file_bytes=4 * MB, output_bytes=MB, open_files=64)

BOMBS = (
    Attack(
        "fork-bomb",
        """
import time
started = 0
try:
    while started < min(facts['count'], 40):
        if not os.fork():
            os.closerange(0, 3)
            time.sleep(30)
            os._exit(0)
        started += 1
finally:
    print(started, flush=True)
""",
        code=1,
        succeeds=printed_more_than(LIMITS.processes),
    ),
    Attack(
        "doubling-fork-bomb",
        """
import time
end = 10**9 if facts['count'] > 100 else 5
turn = 0
while turn < end:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
    turn += 1
print(os.getpid(), flush=True)
time.sleep(0.3)
print(2**turn)
""",
        "wall-time",
        None,
        limits=BRIEF,
        succeeds=lambda targets, result: len(set(result.stdout.split())) > LIMITS.processes,
    ),
    Attack(
        "children-that-nobody-awaits",
        """
started = 0
try:
    while started < facts['count']:
        if not os.fork():
            os._exit(0)
        started += 1
finally:
    print(started, flush=True)
""",
        code=1,
        succeeds=printed_more_than(LIMITS.processes),
    ),
    Attack(
        "flood-of-orphans",
        """
import time
for turn in range(facts['count']):
    try:
        if not os.fork():
            if not os.fork():
                os.closerange(0, 3)
                time.sleep(1 if facts['count'] == 100 else 0)
            os._exit(0)
        os.wait()
    except OSError:
        pass
""",
        "wall-time",
        None,
        limits=BRIEF,
        succeeds=lambda targets, result: len(targets.left_running()) > LIMITS.processes,
    ),
    Attack(
        "thread-bomb",
        """
import threading, time
started = 0
try:
    while started < facts['count']:
        threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()
        started += 1
finally:
    print(started, flush=True)
""",
        code=1,
        succeeds=printed_more_than(LIMITS.processes),
    ),
    Attack(
        "memory-bomb",
        """
kept = []
for _ in range(facts['megabytes']):
    kept.append(bytearray(b'x') * (1 << 20))
print(len(kept))
""",
        "memory",
        None,
        succeeds=printed_more_than(64),
    ),
    Attack(
        "memory-at-once", "print(len(bytearray((facts['megabytes'] or 1) << 20)) >> 20)", "memory", None, succeeds=printed_more_than(64)
    ),
    Attack(
        "memory-error-is-caught",
        """
kept = []
while len(kept) < facts['megabytes']:
    try:
        kept.append(bytearray(b'x') * (1 << 20))
    except BaseException:
        pass
print(len(kept))
""",
        "memory",
        None,
        succeeds=printed_more_than(64),
    ),
    Attack(
        "memory-in-children",
        """
import time
for _ in range(3):
    if not os.fork():
        kept = bytearray(b'x') * (30 << 20)
        time.sleep(facts['seconds'])
        os._exit(0)
numbers = open(f'/proc/self/task/{os.getpid()}/children').read().split()
size, end = 0, time.monotonic() + facts['seconds']
while time.monotonic() < end and size < 90:
    time.sleep(0.01)
    size = sum(int(open(f'/proc/{number}/statm').read().split()[1]) // 256 for number in numbers)
time.sleep(0.2)  # a tree is measured forty times a second; what is let go of sooner may pass unseen
print(size)
for number in numbers:
    os.kill(int(number), 9)
    os.wait()
""",
        "memory",
        None,
        succeeds=printed_more_than(64),
    ),
    Attack(
        "memory-shared-with-children",
        """
import mmap, time
room = mmap.mmap(-1, min(facts['megabytes'], 400) << 20)
while room.tell() < len(room):
    room.write(bytes(1 << 20))
    if room.tell() == 8 << 20:
        os.fork()
print(room.tell() >> 20)
""",
        "memory",
        None,
        succeeds=printed_more_than(64),
    ),
    Attack(
        # Each is small enough for the limit on files.
        "memory-files",
        """
total = 0
for _ in range(min(facts['megabytes'] // 10, 20)):
    total += os.write(os.memfd_create('x'), bytes(2 << 20)) >> 20
print(total)
""",
        code=1,
        succeeds=printed_more_than(4),
    ),
    Attack(
        "system-v-memory",
        LIBC
        + """
end = libc.shmget(0, 8 << 20, 0o1600)
libc.shmctl(end, 0, None)
print('DONE' if end >= 0 else '')
""",
    ),
    Attack(
        "files-in-memory",
        """
total = 0
try:
    for number in range(facts['megabytes'] // 10):
        with open(f"{facts['shm']}/{facts['marker']}{number}", 'wb') as file:
            file.write(bytes(1 << 20))
        total += 1
finally:
    print(total, flush=True)
""",
        code=1,
        succeeds=printed_more_than(4),
    ),
    Attack(
        "disk-bomb",
        """
with open('x', 'wb', buffering=0) as file:
    for _ in range(facts['megabytes'] // 10):
        file.write(bytes(1 << 20))
print(os.path.getsize('x') >> 20)
""",
        code=1,
        succeeds=printed_more_than(4),
    ),
    Attack(
        "sparse-file",
        "os.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)\nprint(os.path.getsize('x') >> 20)",
        code=1,
        succeeds=printed_more_than(4),
    ),
    Attack(
        "flood-of-files",
        """
import signal
end = facts['count'] * 20
for number in range(end):
    os.close(os.open(f'{number}', os.O_CREAT))
    if end > 2000:
        os.kill(os.getppid(), signal.SIGCHLD)
print(end)
""",
        "memory",
        None,
        succeeds=printed_more_than(1024),
    ),
    Attack(
        "descriptor-bomb",
        """
kept = []
try:
    while len(kept) < facts['count']:
        kept.append(os.open('/dev/null', 0))
finally:
    os.close(kept.pop())
    print(len(kept), flush=True)
""",
        code=1,
        succeeds=printed_more_than(LIMITS.open_files),
    ),
    Attack(
        "output-bomb",
        "for _ in range(facts['megabytes']):\n    sys.stdout.write('8' * (1 << 15))",
        "output",
        None,
        succeeds=lambda targets, result: len(result.stdout) > MB,
    ),
    Attack(
        "error-output-bomb",
        """
total = 0
for _ in range(facts['megabytes']):
    total += os.write(2, b'8' * (1 << 15)) / (1 << 20)
print(total)
""",
        "output",
        None,
        succeeds=printed_more_than(1),
    ),
    Attack(
        "spins-in-children",
        """
import time
for _ in range(2):
    os.fork()
print(os.getpid(), flush=True)
end = time.monotonic() + (facts['count'] > 100) * 60 + 0.2
while time.monotonic() < end:
    pass
print('over')
""",
        "cpu-time",
        None,
        limits=SPINNING,
        # Four processes ran, each of them for less than one process may.
        succeeds=lambda targets, result: result.stdout.split().count(b"over") == 4,
    ),
    Attack(
        "crash-of-the-interpreter",
        "import ctypes\nctypes.string_at(0)",
        "signalled",
        11,
        succeeds=lambda targets, result: result.returncode == -11,
        hurts_only_itself=True,
    ),
)
