"""One writer per store: a lock that the operating system lets go of when its holder dies, however it dies.

Exercise it: ``pytest tests/evals/ms4_evals/store/test_lock.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ms4_train.errors import EvaluationError
from ms4_train.storage import storage_errors


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive ``flock`` on the file at ``path``, which is made and left in place.

    The holder's process id stands in the file for the message that the next one gets. File systems without working ``flock`` (some
    cluster file systems) give no protection.

    Raises:
        EvaluationError: another process holds the lock.
        StorageError: the file cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 20).decode("ascii", "replace").strip()
            raise EvaluationError(
                f"another evaluation is writing to this store{f' (process {holder})' if holder.isdigit() else ''}.",
                file=path.with_suffix(""),
                key="store",
                fix="wait until it has ended, or name another store.",
            ) from None
        with storage_errors(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(handle)
