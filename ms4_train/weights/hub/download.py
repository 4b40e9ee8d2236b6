"""Several files from a hub at once, each checked in a hidden folder and then moved to its place.

Exercise it: ``pytest tests/ms4_train/weights/hub/test_download.py``.

Not covered: which files, and what a complete folder is (``pull.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache

from ms4_train.errors import StorageError, WeightsError
from ms4_train.storage import fsync_file, fsync_folder, storage_errors
from ms4_train.weights.hub.failures import hub_errors
from ms4_train.weights.hub.listing import RemoteFile, local_content
from ms4_train.weights.layouts.names import and_more

STAGING_FOLDER = ".pull"
DOWNLOADS = 4
"""Files at a time: enough to fill a fast line, few enough that an interruption loses little."""
_log = logging.getLogger(__name__)


class _Damaged(WeightsError):
    """A file that arrived and is not the one listed."""


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Make ``out`` and the hidden folder in it that downloads arrive in, for this process alone.

    What a killed process left of files in the middle is deleted; files that arrived whole stay.

    Raises:
        StorageError: another process pulls into ``out``, or it cannot be written.
    """
    folder = out / STAGING_FOLDER
    with storage_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError("another pull is writing to this folder.", file=out, fix="wait for it, or choose another folder.") from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s); make sure that no second pull writes to it.", out, error.strerror)
        with storage_errors(out):
            for left in folder.glob(".cache/huggingface/**/*.incomplete"):
                left.unlink(missing_ok=True)
        yield folder
    finally:
        os.close(descriptor)


def remove_staging(out: Path) -> None:
    """Delete the hidden folder, at the end of a complete pull."""
    shutil.rmtree(out / STAGING_FOLDER, ignore_errors=True)
    with storage_errors(out):
        fsync_folder(out)


def download_all(api: HfApi, repo: str, commit: str, files: dict[str, RemoteFile], out: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Put every file into ``out``, checked; one that is there and right is kept.

    A damaged file does not stop the others; any other failure lets those that are under way finish and starts no new ones.

    Args:
        api: the client.
        repo: ``owner/name``.
        commit: full hash.
        files: what to fetch.
        out: the folder; its hidden folder exists.
        say: takes one line per file.

    Returns:
        name -> SHA-256.

    Raises:
        WeightsError: a file is not the one listed (the first is named, others counted; nothing of it stays), or as ``hub_errors``.
        StorageError: the disk is full.
    """
    # Large files first, so that the last minutes are not one thread's.
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in sorted(files.values(), key=lambda file: (-file.size, file.name)):
        waiting.put(file)
    sums: dict[str, str] = {}
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                with hub_errors(api, repo, revision=commit, folder=out):
                    sums[file.name] = _settle(api, repo, commit, file, out)
                say(f"{file.name}: {file.size:,} bytes, sum right ({len(sums)} of {len(files)})")
            except BaseException as error:
                failures.append(error)
                if not isinstance(error, _Damaged):
                    stop.set()

    # Daemons: Ctrl-C ends the process at once instead of after gigabytes; what it leaves is swept by the next pull.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(DOWNLOADS, len(files)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        _raise_first(failures)
    return sums


def _raise_first(failures: list[BaseException]) -> None:
    others = [error for error in failures if not isinstance(error, _Damaged)]
    if others:
        raise others[0]
    damaged = [error for error in failures if isinstance(error, _Damaged)]
    first = damaged[0]
    raise WeightsError(f"{first.message.removesuffix('.')}{and_more(damaged)}.", file=first.file, fix=first.fix)


def _settle(api: HfApi, repo: str, commit: str, file: RemoteFile, out: Path) -> str:
    """Make sure that ``out`` holds the file; returns its SHA-256."""
    target, staged = out / file.name, out / STAGING_FOLDER / file.name
    by_git = file.sha256 is None
    if target.is_file() and not target.is_symlink():
        content = local_content(target, with_git_id=by_git)
        if content.is_that_of(file):
            return content.sha256
        target.unlink()  # of an unfinished pull: damaged since
    api.hf_hub_download(repo, file.name, revision=commit, local_dir=staged.parent)
    content = local_content(staged, with_git_id=by_git)
    if not content.is_that_of(file) and isinstance(try_to_load_from_cache(repo, file.name, revision=commit), str):
        _log.warning("%s in the cache of huggingface_hub is damaged and is downloaded again.", file.name)
        api.hf_hub_download(repo, file.name, revision=commit, local_dir=staged.parent, force_download=True)
        content = local_content(staged, with_git_id=by_git)
    if not content.is_that_of(file):
        staged.unlink()
        what = f"{content.size:,} bytes instead of {file.size:,}" if content.size != file.size else "another sum than the hub gives"
        raise _Damaged(f"the download is damaged: it has {what}.", file=target, fix="pull again; only damaged files are downloaded again.")
    fsync_file(staged)
    staged.replace(target)
    fsync_folder(out)
    return content.sha256
