"""A record of what a save asked of the disk, and every state that a loss of power may leave behind in the middle of it.

The rules are POSIX's, read strictly: what was written to a file is safe after the file was flushed, and a name in a folder after the
folder was. Until then a file may have all of its bytes, half of them or none, and a folder may have its old names.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.run_state_calls import Call, Watcher


class Recorder(Watcher):
    """Keeps every call that was made, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def after(self, call: Call) -> None:
        self.calls.append(call)


@dataclass(eq=False)
class File:
    """A file's bytes, and those that are safe; None when none ever were."""

    data: bytes = b""
    safe: bytes | None = None

    @property
    def is_safe(self) -> bool:
        """Whether a loss of power changes nothing in it."""
        return self.data == self.safe


@dataclass(eq=False)
class Folder:
    """A folder's names, and those that are safe."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """What a loss of power does to what is not safe.

    Args:
        label: in words.
        forgetting: folders that have their old names.
        contents: file -> what it holds; None when it is gone.
    """

    label: str
    forgetting: frozenset[Folder] = frozenset()
    contents: tuple[tuple[File, bytes | None], ...] = ()


class Disk:
    """The files under a folder, as calls change them."""

    def __init__(self, root: Path) -> None:
        """Begin with what lies there now, all of it safe."""
        self.root = root
        self.top = _read(root)

    def apply(self, call: Call) -> None:
        """Do what a call did."""
        if call.path == self.root:
            if call.kind == "fsync":
                self.top.safe = dict(self.top.names)
            return
        parent = self._folder(call.path.parent)
        name = call.path.name
        if call.kind in ("create", "mkdir"):
            parent.names[name] = File() if call.kind == "create" else Folder()
        elif call.kind in ("unlink", "rmdir"):
            del parent.names[name]
        elif call.kind == "rename":
            assert call.target is not None
            self._folder(call.target.parent).names[call.target.name] = parent.names.pop(name)
        elif call.kind == "write":
            file = parent.names[name]
            assert isinstance(file, File)
            file.data = file.data[: call.offset].ljust(call.offset, b"\0") + call.data + file.data[call.offset + len(call.data) :]
        else:
            assert call.kind == "fsync", call.kind
            node = parent.names[name]
            if isinstance(node, Folder):
                node.safe = dict(node.names)
            else:
                node.safe = node.data

    def losses(self) -> Iterator[Loss]:
        """The states that a loss of power may leave now."""
        yield Loss("nothing is lost")
        folders = [folder for folder in _folders(self.top) if folder.names != folder.safe]
        unsafe = [file for file in _files(self.top) if not file.is_safe]
        every = frozenset(_folders(self.top))
        empty = tuple((file, file.safe or b"") for file in unsafe)
        if folders or unsafe:
            yield Loss("only what is safe is left", every, empty)
        for folder in folders:
            yield Loss("a folder has its old names", frozenset({folder}))
            yield Loss("a folder has its old names, files are empty", frozenset({folder}), empty)
        for file in unsafe:
            contents = {"absent": file.safe, "empty": b"", "half": file.data[: len(file.data) // 2]}
            for label, data in contents.items() if file.data else ():
                yield Loss(f"a file is {label}", frozenset(), ((file, data),))
        if len(unsafe) > 1:
            yield Loss("files are empty", frozenset(), empty)

    def write(self, target: Path, loss: Loss) -> None:
        """Make a folder of what is left."""
        shutil.rmtree(target, ignore_errors=True)
        _write(self.top, target, loss.forgetting, dict(loss.contents))

    def _folder(self, path: Path) -> Folder:
        folder = self.top
        for name in path.relative_to(self.root).parts:
            found = folder.names[name]
            assert isinstance(found, Folder)
            folder = found
        return folder


def replay(root: Path, calls: Iterable[Call], disk: Disk) -> Iterator[tuple[int, Disk]]:
    """(number of calls done, disk) for every prefix of the calls, from none to all."""
    yield 0, disk
    for number, call in enumerate(calls, 1):
        disk.apply(call)
        yield number, disk


def _read(path: Path) -> Folder:
    names = {item.name: _read(item) if item.is_dir() else File(item.read_bytes(), item.read_bytes()) for item in sorted(path.iterdir())}
    return Folder(names, dict(names))


def _write(folder: Folder, target: Path, forgetting: frozenset[Folder], contents: dict[File, bytes | None]) -> None:
    target.mkdir(parents=True)
    for name, node in (folder.safe if folder in forgetting else folder.names).items():
        if isinstance(node, Folder):
            _write(node, target / name, forgetting, contents)
        elif (data := contents.get(node, node.data)) is not None:
            (target / name).write_bytes(data)


def _folders(top: Folder) -> Iterator[Folder]:
    yield top
    seen = {id(node): node for node in [*top.names.values(), *top.safe.values()] if isinstance(node, Folder)}
    for folder in seen.values():
        yield from _folders(folder)


def _files(top: Folder) -> Iterator[File]:
    files = (node for folder in _folders(top) for node in [*folder.names.values(), *folder.safe.values()] if isinstance(node, File))
    yield from dict.fromkeys(files)
