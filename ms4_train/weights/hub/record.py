"""``hub.json``: which repository, commit and files a folder was pulled from.

Exercise it: ``pytest tests/ms4_train/weights/hub/test_record.py``.

Not covered: a record is what ``pull`` believed; that the files are still so is told by their sizes and ``SHA256SUMS``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.storage import atomic_write_text
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.checksums import is_plain_name
from ms4_train.weights.hub.listing import RemoteFile, is_commit
from ms4_train.weights.hub.selection import RECORD_FILE

MAX_RECORD_BYTES = 64 << 20
_FORMAT = "ms4-hub-record"
_VERSION = 1


@dataclass(frozen=True)
class HubRecord:
    """Where a folder's files are from.

    Attributes:
        repo: the repository, ``owner/name``.
        revision: branch, tag or commit that was asked for; None where none was.
        commit: the commit it was.
        layouts: ``native``, ``hf``, ``adapter`` or ``all``, in the order they were pulled.
        files: name -> file.
    """

    repo: str
    revision: str | None
    commit: str
    layouts: tuple[str, ...]
    files: dict[str, RemoteFile]


def write_record(folder: Path, record: HubRecord) -> None:
    """Write ``hub.json``, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    content = {"format": _FORMAT, "version": _VERSION, **asdict(record)}
    content["files"] = [asdict(record.files[name]) for name in sorted(record.files)]
    atomic_write_text(folder / RECORD_FILE, json.dumps(content, indent=1) + "\n")


def read_record(folder: Path) -> HubRecord | None:
    """The record of a folder; None where there is none.

    Raises:
        WeightsError: there is a ``hub.json`` that is not such a record.
    """
    path = folder / RECORD_FILE
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return _parsed(parse_json(read_bytes(path, max_bytes=MAX_RECORD_BYTES), file=path))
    except (MS4Error, KeyError, TypeError, ValueError, AttributeError) as error:
        what = error.message if isinstance(error, MS4Error) else "it has another form"
        raise WeightsError(f"is not a record of a pull: {what}", file=path, fix="pull into another folder.") from error


def _parsed(content: Any) -> HubRecord:
    if content["format"] != _FORMAT or content["version"] != _VERSION:
        raise ValueError
    files = {entry["name"]: RemoteFile(**entry) for entry in content["files"]}
    record = HubRecord(content["repo"], content["revision"], content["commit"], tuple(content["layouts"]), files)
    texts = [record.repo, record.commit, *record.layouts, *([record.revision] if record.revision is not None else [])]
    if not all(isinstance(text, str) for text in texts) or not is_commit(record.commit):
        raise ValueError
    for name, file in files.items():
        if not isinstance(name, str) or not is_plain_name(name) or type(file.size) is not int or file.size < 0:
            raise ValueError
    return record
