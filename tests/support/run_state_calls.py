"""Watches what a process asks of the file system, in order: what a save does, and a place to die or to fail in the middle of it.

Every call of ``os`` that changes files goes through the watcher: pathlib, shutil and ms4_train all end there. Python's own file objects do
not, which is why ``run_state_journal`` compares its record with what really lies on the disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call: ``create``, ``write``, ``fsync``, ``rename``, ``unlink``, ``rmdir`` or ``mkdir``.

    ``path`` is what it acts on, ``target`` the new name of a rename, ``data`` the bytes of a write, ``offset`` where they go, and
    ``thread`` the thread that asked.
    """

    kind: str
    path: Path
    target: Path | None = None
    data: bytes = b""
    offset: int = 0
    thread: str = "MainThread"


class Watcher:
    """What to do around each call. ``before`` may raise in the place of the call, or end the process; ``after`` sees it done."""

    def before(self, call: Call) -> None:
        """The call is about to be made."""

    def after(self, call: Call) -> None:
        """The call was made."""

    def share(self, call: Call) -> int | None:
        """How many bytes of a write are really written; None for all."""
        return None


def path_of(descriptor: int) -> Path:
    """The file behind a descriptor."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _resolved(path: Any, folder: int | None = None) -> Path:
    if isinstance(path, int):
        return path_of(path)
    path = Path(os.fsdecode(path))
    base = path_of(folder) if folder is not None else Path.cwd()
    return base / path


@contextlib.contextmanager
def watched(watcher: Watcher, under: Path) -> Iterator[None]:
    """Let ``watcher`` see the calls on paths under a folder while the block runs."""
    root = Path(os.path.realpath(under))
    true = {name: getattr(os, name) for name in _MAKERS}

    def seen(call: Call, work: Callable[[], Any]) -> Any:
        if not (call.path == root or root in call.path.parents):
            return work()
        watcher.before(call)
        result = work()
        watcher.after(call)
        return result

    for name, maker in _MAKERS.items():
        setattr(os, name, maker(true[name], seen, watcher))
    try:
        yield
    finally:
        for name, function in true.items():
            setattr(os, name, function)


def _opening(true: Callable[..., Any], seen: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def work() -> int:
            return true(path, flags, mode, dir_fd=dir_fd)

        place = _resolved(path, dir_fd)
        if not flags & os.O_CREAT or place.exists():
            return work()
        return seen(_call("create", place), work)

    return opened


def _writing(true: Callable[..., Any], seen: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    def write(descriptor: int, data: Any, *rest: Any) -> int:
        parts = data if isinstance(data, list | tuple) else [data]
        joined = b"".join(bytes(part) for part in parts)
        try:
            offset = rest[0] if rest else os.lseek(descriptor, 0, os.SEEK_CUR)
        except OSError:  # a pipe, a terminal: no file
            return true(descriptor, data, *rest)
        call = _call("write", path_of(descriptor), data=joined, offset=offset)

        def work() -> int:
            count = watcher.share(call)
            if count is None:
                return true(descriptor, data, *rest)
            return _TRUE_WRITE(descriptor, joined[:count])

        return seen(call, work)

    return write


def _syncing(true: Callable[..., Any], seen: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    return lambda descriptor: seen(_call("fsync", path_of(_number(descriptor))), lambda: true(descriptor))


def _renaming(true: Callable[..., Any], seen: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    def rename(source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        call = _call("rename", _resolved(source, src_dir_fd), target=_resolved(target, dst_dir_fd))
        seen(call, lambda: true(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    return rename


def _naming(kind: str) -> Callable[..., Any]:
    def make(true: Callable[..., Any], seen: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
        def act(path: Any, *rest: Any, dir_fd: int | None = None) -> None:
            seen(_call(kind, _resolved(path, dir_fd)), lambda: true(path, *rest, dir_fd=dir_fd))

        return act

    return make


def _call(kind: str, path: Path, **keys: Any) -> Call:
    return Call(kind, path, thread=threading.current_thread().name, **keys)


def _number(descriptor: Any) -> int:
    return descriptor if isinstance(descriptor, int) else descriptor.fileno()


_TRUE_WRITE = os.write
_MAKERS: dict[str, Callable[..., Any]] = {
    "open": _opening,
    "write": _writing,
    "writev": _writing,
    "pwrite": _writing,
    "fsync": _syncing,
    "fdatasync": _syncing,
    "rename": _renaming,
    "replace": _renaming,
    "unlink": _naming("unlink"),
    "remove": _naming("unlink"),
    "rmdir": _naming("rmdir"),
    "mkdir": _naming("mkdir"),
}
