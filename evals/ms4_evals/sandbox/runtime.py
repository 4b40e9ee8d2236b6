"""What a sandboxed program finds instead of this machine: the interpreter, the libraries it is linked with, a few packages; all read-only.

The interpreter that runs us is shown under ``/python``, whatever folder it lives in, without the packages installed beside it; then the
packages that programs may import. Where we run as root, programs run as nobody, who often may not enter the folder of the interpreter
(``/root`` is closed): then it is copied once to a folder that everybody may read, named by what was copied.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_runtime.py``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.sandbox.copies import COPIES, Piece, copy_for_everybody, is_open_to_everybody
from ms4_train.errors import EvaluationError

PACKAGES = ("numpy", "sortedcontainers")
"""What judges of programming contests offer too; a program that imports anything else fails, as it would there."""

PREFIX = "/python"
_SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/libexec/ld-elf.so.1")
_SYSTEM_PACKAGES = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3/dist-packages")


@dataclass(frozen=True)
class Runtime:
    """What is mounted, in order, and how the interpreter is called inside.

    Attributes:
        mounts: bubblewrap's arguments, all of them read-only mounts, links and empty folders.
        python: path of the interpreter inside.
        environment: every variable that a program sees.
        packages: name -> version of the packages that programs may import.
    """

    mounts: tuple[str, ...]
    python: str
    environment: dict[str, str]
    packages: dict[str, str]


def _interpreter() -> tuple[list[Piece], str]:
    """The parts of this interpreter, and its path below ``PREFIX``."""
    base = Path(sys.base_prefix)
    binary = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base), "base": str(base)}))
    platform_library = Path(sysconfig.get_path("platstdlib", vars={"installed_platbase": sys.base_exec_prefix, "platbase": str(base)}))
    if not (library / "os.py").is_file() or not binary.is_file():
        raise EvaluationError(
            f"the interpreter's own parts were not found ({binary}, {library})", fix="run with a Python that has its library in a folder"
        )
    inside = f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
    folder = f"{library.parent.name if library.parent.name.startswith('lib') else 'lib'}/{library.name}"
    pieces = [Piece(binary, inside), Piece(library, folder)]
    if platform_library != library and platform_library.is_dir() and platform_library.parent.name != library.parent.name:
        pieces.append(Piece(platform_library, f"{platform_library.parent.name}/{platform_library.name}"))
    if base not in (Path("/usr"), Path("/usr/local"), Path("/")):
        # A Python of its own folder (conda, pyenv, uv) brings shared libraries with it.
        folders = {library.parent.resolve(), Path(sysconfig.get_config_var("LIBDIR") or library.parent).resolve()}
    else:
        folders = {Path(sysconfig.get_config_var("LIBDIR") or library.parent).resolve()} - {Path("/usr/lib"), Path("/usr/lib64")}
    for found in sorted(path for folder in folders if os.access(folder, os.R_OK | os.X_OK) for path in folder.glob("lib*.so*")):
        if base == Path("/usr/local") and not found.name.startswith("libpython"):
            continue
        if found.is_file():
            pieces.append(Piece(found.resolve(), f"lib/{found.name}"))
    return pieces, inside


def _package(name: str) -> list[tuple[Path, str]]:
    """Folders and files of one installed package, with their names beside each other; nothing where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin).resolve()
    found = origin.parent if spec.submodule_search_locations else origin
    # Wheels put the shared libraries they bring into a second folder.
    libraries = found.parent / f"{name}.libs"
    return [(found, found.name)] + ([(libraries, libraries.name)] if libraries.is_dir() else [])


def _version(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "unknown"


def build_runtime(packages: Sequence[str] = PACKAGES, *, is_for_nobody: bool = False, storage: Path | None = None) -> Runtime:
    """What programs find.

    Args:
        packages: those of them that are installed here can be imported.
        is_for_nobody: programs run as a user who may read only what everybody may; what is closed to everybody is copied.
        storage: folder in which the copy is made and kept (default ``/var/tmp``).

    Raises:
        EvaluationError: the interpreter's parts are not found, or cannot be copied.
    """
    pieces, inside = _interpreter()
    library = next(piece for piece in pieces if (piece.source / "os.py").is_file())
    hidden = [name for name in ("site-packages", "dist-packages") if (library.source / name).is_dir()]
    # Debian's interpreter has no such folder beside its library, and looks here.
    site = f"{library.inside}/site-packages" if "site-packages" in hidden else "lib/python3/dist-packages"
    found = {name: parts for name in packages if (parts := _package(name))}
    contents = [Piece(source, f"{site}/{name}") for parts in found.values() for source, name in parts]
    if is_for_nobody and not all(is_open_to_everybody(piece.source) for piece in [*pieces, *contents]):
        root = copy_for_everybody([*pieces, *contents], storage or COPIES, folders=[site])
        mounts = ["--ro-bind", str(root), PREFIX]
    else:
        folders = [f"{PREFIX}/{library.inside}/{name}" for name in hidden]
        mounts = [part for piece in pieces for part in ("--ro-bind", str(piece.source), f"{PREFIX}/{piece.inside}")]
        mounts += [part for folder in folders for part in ("--tmpfs", folder)]
        mounts += [part for piece in contents for part in ("--ro-bind", str(piece.source), f"{PREFIX}/{piece.inside}")]
        mounts += [part for folder in folders for part in ("--remount-ro", folder)]
    return Runtime(
        mounts=tuple(_system_mounts() + mounts),
        python=f"{PREFIX}/{inside}",
        environment=_environment(),
        packages={name: _version(name) for name in found},
    )


def _system_mounts() -> list[str]:
    """The C library and what the interpreter is linked with. Folders that are links here are links inside."""
    mounts = []
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            mounts += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.exists():
            mounts += ["--ro-bind", str(folder), str(folder)]
    mounts += [part for folder in _SYSTEM_PACKAGES if Path(folder).is_dir() for part in ("--tmpfs", folder, "--remount-ro", folder)]
    if Path("/etc/ld.so.cache").is_file():
        mounts += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return mounts


def _environment() -> dict[str, str]:
    return {
        "PATH": f"{PREFIX}/bin",
        "LD_LIBRARY_PATH": f"{PREFIX}/lib",
        "HOME": "/box",
        "TMPDIR": "/box",
        "LANG": "C.UTF-8",
        # Threads count as processes, and each arena of malloc reserves addresses that count as memory.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }
