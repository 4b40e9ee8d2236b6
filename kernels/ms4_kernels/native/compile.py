"""Compiling the C sources for this very processor, and finding the result again.

The result lies in the user's cache folder under a name made of everything it depends on: sources, compiler, options, processor. It is
written beside its place and moved there, so processes that start at once do not meet half a file, and only a folder that nobody else may
write to is used. ``MS4_NATIVE_CACHE`` names another folder.
Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_compile.py``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-std=gnu11", "-w")
_SECONDS = 120


class CompileError(RuntimeError):
    """There is no library, and why: no compiler, no safe folder, or what the compiler said."""


def compiled(source: str = "kernels.c", *, own_openmp: bool = False) -> Path:
    """The shared library of one source, compiled if it is not in the cache.

    OpenMP is switched on for compiling and left out for linking: its symbols come from the copy that torch has loaded, so that one pool
    of threads serves both.

    Args:
        source: its name in this folder.
        own_openmp: link the compiler's own OpenMP all the same, where torch brings none that can be seen.

    Raises:
        CompileError: see there.
    """
    compiler = find_compiler()
    folder = cache_folder()
    threads = ["-fopenmp"] if platform.system() == "Linux" else []
    linking = [*_unresolved_allowed(), *(threads if own_openmp else [])]
    options = [*_OPTIONS, *threads, "linked with", *linking]
    target = folder / f"{Path(source).stem}-{_fingerprint(compiler, options)}.so"
    if _is_whole(target):
        return target
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as building:
        built, result = Path(building) / "object.o", Path(building) / "library.so"
        _run([*compiler, *_OPTIONS, *threads, "-c", str(SOURCES / source), "-o", str(built)])
        _run([*compiler, "-shared", str(built), "-o", str(result), *linking])
        _put(target.with_suffix(".sha256"), hashlib.sha256(result.read_bytes()).hexdigest().encode())
        _put(target, result.read_bytes())
    return target


def _is_whole(target: Path) -> bool:
    """Whether a library is there and is what was written: loading half of one would kill the process."""
    try:
        return hashlib.sha256(target.read_bytes()).hexdigest() == target.with_suffix(".sha256").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _put(target: Path, content: bytes) -> None:
    """Write a file beside its place, to the disk, and move it there."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix="building-", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(target)


def find_compiler() -> list[str]:
    """The command of a C compiler: ``CC``, or the first of cc, gcc and clang on the path."""
    chosen = os.environ.get("CC")
    try:
        names = [shlex.split(chosen)] if chosen and chosen.strip() else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise CompileError(f"CC={chosen}: {error}") from error
    for command in names:
        if shutil.which(command[0]):
            return command
    raise CompileError(f"no C compiler: {' '.join(command[0] for command in names)} not found")


def cache_folder() -> Path:
    """A folder of this user's alone, made if need be.

    Raises:
        CompileError: it cannot be made, or others may write to it: a library planted there would be run.
    """
    base = os.environ.get("MS4_NATIVE_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ms4_kernels"
    try:
        folder = folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # without a home folder to speak of, expanduser raises the second
        raise CompileError(f"no cache folder at {folder}: {error}; set MS4_NATIVE_CACHE") from error
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise CompileError(f"{folder} is another user's, or others may write to it; set MS4_NATIVE_CACHE to a folder that is yours alone")
    return folder


def _fingerprint(compiler: list[str], options: list[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.c")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = _run([*compiler, "--version"]).stdout
    digest.update("\0".join([*options, *compiler, version, processor()]).encode())
    return digest.hexdigest()[:24]


def processor() -> str:
    """What ``-march=native`` depends on: home folders are shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "features", "cpu part")
    found = {line.partition(":")[0].strip().lower(): line for line in reversed(lines)}
    return "\n".join([platform.machine(), *(found[key] for key in wanted if key in found)])


def _unresolved_allowed() -> list[str]:
    return ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{shlex.join(command)}: {error}") from error
    if result.returncode:
        raise CompileError(f"{shlex.join(command)}: {(result.stderr or result.stdout).strip()[:2000]}")
    return result
