"""The hidden folder in which a conversion's files grow, ``.NAME.converting`` beside the target: lock, journal, and the final rename.

The weight files are made at their full size and flushed before the journal is begun; the result is renamed to its name when every file
is flushed. So at any moment a kill leaves either no target and a folder to go on from, or the whole target.
Exercise it: ``pytest tests/ms4_train/weights/convert/test_workplace.py``.

Not covered: file systems without locks (a warning is logged there).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ms4_train.errors import MS4Error, StorageError, WeightsError
from ms4_train.storage import fsync_file, fsync_folder, storage_errors
from ms4_train.weights.convert.journal import JournalState, read_journal, start_journal
from ms4_train.weights.convert.plan import FolderPlan
from ms4_train.weights.convert.tensor_file import create, is_as_planned
from ms4_train.weights.folder import refuse_foreign_content

_LOG = logging.getLogger(__name__)
_WHAT = {"arguments": "it was begun with other arguments", "source": "the source has changed", "plan": "it was begun by another version"}


class Workplace:
    """The place of one conversion; a context manager that holds its lock.

    Args:
        out: the folder to make; absent or empty.
        source: the folder that is read, which must not hold ``out``.

    Raises:
        StorageError: ``out`` holds something, lies within the source, or another process is converting to it.
    """

    def __init__(self, out: Path, source: Path) -> None:
        self.out = Path(os.path.realpath(out))
        self.folder = self.out.with_name(f".{self.out.name}.converting")
        self.files = self.folder / "files"
        self._lock: int | None = None
        self._is_ours = False
        if self.out == (real := Path(os.path.realpath(source))) or real in self.out.parents:
            raise StorageError("lies in the folder that is converted.", file=out, fix="choose another folder.")
        refuse_foreign_content(self.out, None)
        self._made = [folder for folder in self.out.parents if not folder.exists()]

    def __enter__(self) -> Self:
        with storage_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        # Another process may have finished since the first look.
        try:
            refuse_foreign_content(self.out, None)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Keep what a later run can go on from; bad input leaves nothing of this run. A disk that fails to read is not bad input."""
        is_bad_input = isinstance(error, MS4Error) and not isinstance(error, StorageError) and not isinstance(error.__cause__, OSError)
        if error is not None and ((self._is_ours and is_bad_input) or read_journal(self.folder) is None):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._leave()

    def _leave(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _locked(self) -> int:
        """Descriptor of the hidden folder, locked; the system lets go when the process ends, however it ends."""
        while True:
            self.folder.mkdir(exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise StorageError(
                    "another conversion is writing this folder.", file=self.out, fix="wait for it to end, or choose another folder."
                ) from None
            except OSError as error:
                _LOG.warning("%s cannot be locked (%s); make sure that nobody else converts to it.", self.folder, error.strerror)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self.folder.stat()):
                    return descriptor
            os.close(descriptor)  # whoever held the lock before has finished and taken the folder away

    @property
    def has_journal(self) -> bool:
        """Whether there is something to go on from."""
        return read_journal(self.folder) is not None

    def left_over(self, plan: FolderPlan, header: Mapping[str, Any]) -> tuple[JournalState | None, str | None]:
        """What an earlier run left that can be gone on from; else why its remains cannot be used (None where there are none)."""
        state = read_journal(self.folder)
        if state is None:
            return None, "its journal cannot be read" if self.files.exists() else None
        for key, what in _WHAT.items():
            if state.header.get(key) != header[key]:
                return None, what
        if not all(is_as_planned(self.files / file.name, file) for file in plan.files):
            return None, "its files are damaged"
        self._is_ours = True
        planned = {file.name for file in plan.files}
        for entry in self.files.iterdir():
            if entry.name not in planned:
                entry.unlink()  # small files are written anew; those of a killed run may be half, or gone from the source since
        return state, None

    def begin(self, plan: FolderPlan, header: Mapping[str, Any]) -> JournalState:
        """Start anew: remove remains, make the files with their headers, flush them, and begin the journal.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self.clear()
        self._is_ours = True
        self.files.mkdir()
        for file in plan.files:
            create(self.files / file.name, file)
        fsync_folder(self.files)
        start_journal(self.folder, header)
        state = read_journal(self.folder)
        assert state is not None
        return state

    def clear(self) -> None:
        """Remove what an earlier run left.

        Raises:
            OSError: it cannot be removed.
        """
        for entry in sorted(self.folder.iterdir(), key=lambda entry: entry.name != "journal.jsonl"):  # the journal first: it vouches
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def bytes_on_disk(self) -> int:
        """Bytes that the weight files take on the disk already."""
        return sum(path.stat().st_blocks * 512 for path in self.files.iterdir()) if self.files.is_dir() else 0

    def commit(self) -> None:
        """Flush every file, give the result its name, and remove the hidden folder.

        Raises:
            OSError: the disk fails.
        """
        for path in self.files.iterdir():
            fsync_file(path)
        fsync_folder(self.files)
        self.files.rename(self.out)
        fsync_folder(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


def source_identity(paths: list[Path]) -> list[list[Any]]:
    """What tells a source from a changed one: name, size, time of change and inode of each file.

    Raises:
        WeightsError: a file is gone.
    """
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror}).", file=path, fix="put the file back.") from None
        found.append([path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return found
