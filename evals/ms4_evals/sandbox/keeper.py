"""The first process of every sandbox: sets the limits, starts the program, and says how it ended. Its text runs alone, inside.

It is handed to ``python -I -S -c`` (see ``keeper_command``), so it may use nothing but modules that the interpreter carries itself. In
bubblewrap it is process 1 of the program's namespace: no signal from inside reaches it, and when it ends the kernel kills whatever is left.
It ends, and with it the namespace, when nobody is left to read the report (a watcher that was killed) or when its own parent is gone.
It writes to the report: a zero byte now and then; ``started``; ``files`` when there were too many of them; ``failed WHY`` when the program
cannot be started; and ``ended STATUS CPU_SECONDS PEAK_KIB`` with the wait status of the program. A keeper that ends without that line
failed itself.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_keeper.py``.
"""

# ruff: noqa: SIM105 - contextlib is not carried by the interpreter itself, and loading it takes longer than the rest of this file.

import _signal  # pyright: ignore[reportMissingImports]
import posix
import sys
import time

# The smallest pause in which a flood of empty files is noticed; each wakeup costs a few microseconds.
_PAUSE_SECONDS = 0.05
# The size of the first thread's stack, and glibc's default for the others: the same on every machine.
_STACK_BYTES = 8 << 20
_MOST_AT_ONCE = 64
_SIGN_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_REPORT = 3


def _prctl(option: int, value: int) -> None:
    """Where the interpreter has no ``_ctypes`` (or the system no ``prctl``), the keeper goes without."""
    try:
        import _ctypes

        itself = _ctypes.dlopen(None, 0)  # pyright: ignore[reportArgumentType]
        _ctypes.call_function(_ctypes.dlsym(itself, "prctl"), (option, value, 0, 0, 0))
    except (ImportError, AttributeError, OSError):
        pass


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Lowers a limit, never above the hard limit that already holds."""
    import resource

    ceiling = resource.getrlimit(kind)[1]
    wanted = [soft, soft if hard is None else hard]
    if ceiling != resource.RLIM_INFINITY:
        wanted = [ceiling if value == resource.RLIM_INFINITY else min(value, ceiling) for value in wanted]
    resource.setrlimit(kind, (wanted[0], wanted[1]))


def _set_limits(settings: dict[str, int]) -> None:
    import resource

    # The watcher outside stops the tree at the exact limit; this one stops a process that the watcher somehow missed.
    _limit(resource.RLIMIT_CPU, settings["cpu_seconds"])
    _limit(resource.RLIMIT_FSIZE, settings["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, settings["open_files"])
    # Not 0: a core that is piped to a program of the host ignores every limit but this one (core(5), fs/coredump.c).
    _limit(resource.RLIMIT_CORE, 1)
    _limit(resource.RLIMIT_STACK, _STACK_BYTES, resource.RLIM_INFINITY)
    for name, value in (("RLIMIT_MSGQUEUE", 0), ("RLIMIT_MEMLOCK", 64 << 10), ("RLIMIT_SIGPENDING", 256)):
        if hasattr(resource, name):
            _limit(getattr(resource, name), value)
    try:
        _limit(resource.RLIMIT_AS, settings["address_bytes"])
    except (ValueError, OSError):
        # macOS refuses; the watcher's count of resident memory remains.
        pass
    _limit(resource.RLIMIT_NPROC, settings["processes"])


def _start(program: list[str], settings: dict[str, int]) -> int:
    """The process number of the program."""
    child = posix.fork()
    if child:
        return child
    try:
        if not settings["is_isolated"]:
            posix.setsid()
        try:
            score = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
            posix.write(score, b"1000")
            posix.close(score)
        except OSError:
            pass
        _set_limits(settings)
        # Python, or this keeper, ignores these, and a new process inherits that.
        for name in ("SIGINT", "SIGPIPE", "SIGXFSZ"):
            _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        posix.execv(program[0], program)
    except BaseException as error:
        # The report closes on exec: only this process, never the program, can write to it.
        posix.write(_REPORT, f"failed {program[0]}: {error}\n".encode())
        posix._exit(126)
    raise AssertionError("unreachable")


def _has_too_many_files(folder: int, settings: dict[str, int]) -> bool:
    usage = posix.fstatvfs(folder)
    return usage.f_files - usage.f_ffree > settings["inodes"]


def _kill_rest(settings: dict[str, int], program: int, *, wait: bool = True) -> None:
    """Everything that the program started and left behind."""
    if settings["is_isolated"]:
        # From process 1 this reaches every process of the namespace, and nothing else.
        try:
            posix.kill(-1, _signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        try:
            posix.killpg(program, _signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        _kill_children()
    while wait:
        try:
            posix.wait4(-1, 0)
        except ChildProcessError:
            return
        if not settings["is_isolated"]:
            _kill_children()


def _kill_children() -> None:
    """Children of this process; grandchildren become children when their parent dies (this process is a subreaper)."""
    path = f"/proc/self/task/{posix.getpid()}/children"
    try:
        descriptor = posix.open(path, posix.O_RDONLY)
    except OSError:
        return
    numbers = posix.read(descriptor, 1 << 20).split()
    posix.close(descriptor)
    for number in numbers:
        try:
            posix.kill(int(number), _signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _wait(program: int, folder: int, settings: dict[str, int]) -> tuple[int, float, int]:
    """Wait status, CPU seconds and peak KiB of the largest process, over everything that has ended."""
    import resource

    status = None
    next_look = next_sign = 0.0
    while status is None:
        if settings["is_isolated"]:
            if time.monotonic() >= next_sign:
                next_sign = time.monotonic() + _SIGN_SECONDS
                # Fails when the watcher is gone, and that ends everything here.
                posix.write(_REPORT, b"\0")
            # By the clock: signals that the program sends here must not put the look off.
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _PAUSE_SECONDS
                if _has_too_many_files(folder, settings):
                    posix.write(_REPORT, b"files\n")
                    _kill_rest(settings, program, wait=False)
            _signal.sigtimedwait([_signal.SIGCHLD], _PAUSE_SECONDS)
        for _ in range(_MOST_AT_ONCE):
            child, ended, _ = posix.wait4(-1, posix.WNOHANG if settings["is_isolated"] else 0)
            if child == program:
                status = ended
            if child == program or child == 0:
                break
    _kill_rest(settings, program)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def main(arguments: list[str]) -> None:
    """Arguments: descriptor of the report, ``name=integer`` settings, ``--``, and the program's own command."""
    split = arguments.index("--")
    settings = {name: int(value) for name, _, value in (item.partition("=") for item in arguments[1:split])}
    report = int(arguments[0])
    if report != _REPORT:
        posix.dup2(report, _REPORT)
    posix.set_inheritable(_REPORT, False)
    # Whatever else came along (the other ends of pipes, folders that bubblewrap mounted from) never reaches the program.
    posix.closerange(_REPORT + 1, 1 << 20)
    if settings["is_isolated"]:
        _prctl(_PR_SET_DUMPABLE, 0)
        _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
    else:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, _signal.SIGTERM)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCHLD])
    # Python's own handler would let the program interrupt process 1; every other signal from inside is ignored there by the kernel.
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    # Before the program can do anything to delay it: the clock runs from here.
    posix.write(_REPORT, b"started\n")
    # Open from the start: the program may close its folder to everybody.
    folder = posix.open(".", posix.O_RDONLY | posix.O_CLOEXEC)
    program = _start(arguments[split + 1 :], settings)
    if not settings["is_isolated"]:
        # When the watcher is gone; and how it ends the program where it cannot list processes.
        _signal.signal(_signal.SIGTERM, lambda number, frame: _kill_rest(settings, program, wait=False))
    # The program alone holds its standard input now, so that whoever writes to it sees it close.
    posix.close(0)
    status, cpu_seconds, peak = _wait(program, folder, settings)
    posix.write(_REPORT, f"ended {status} {cpu_seconds:.6f} {peak}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
