"""What a repository holds at one commit, checked before anything is done with it; and whether a file on the disk is the one listed.

A hub names files of strangers. A name that could leave the folder it is downloaded to, or that hides what it is in a terminal, ends
the listing with an error. Exercise it: ``pytest tests/ms4_train/weights/hub/test_listing.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from ms4_train.errors import WeightsError
from ms4_train.weights.checksums import Progress, file_sha256, hash_file, is_plain_name
from ms4_train.weights.hub.failures import hub_errors

MAX_FILES = 20_000
"""A model has hundreds of files; a listing without end is a fault or an attack."""
REQUEST_SECONDS = 60.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: path in the repository, parts joined by ``/``.
        size: bytes.
        blob_id: git's id of the content: SHA-1 of ``blob <size>\\0`` and the content. Of an LFS file it is that of the pointer to it.
        sha256: of the content, where the hub keeps it as a large file; None for a small one.
    """

    name: str
    size: int
    blob_id: str
    sha256: str | None = None


@dataclass(frozen=True)
class LocalContent:
    """Identity of a file on the disk: bytes, SHA-256, and git's id of the content (None where it was not asked for)."""

    size: int
    sha256: str
    blob_id: str | None

    def is_that_of(self, file: RemoteFile) -> bool:
        """Whether the hub's file has this content."""
        return self.size == file.size and (self.sha256 == file.sha256 if file.sha256 else self.blob_id == file.blob_id)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit's full hash, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def local_content(path: Path, progress: Progress | None = None, *, with_git_id: bool = True) -> LocalContent:
    """Read a file once and give its identity.

    Args:
        path: the file.
        progress: told the bytes read.
        with_git_id: whether git's id is needed too; a second hash of a large file costs as much time as the first.

    Raises:
        UntrustedInputError, WeightsError: as ``checksums.file_sha256``.
    """
    size = path.stat().st_size
    if not with_git_id:
        return LocalContent(size, file_sha256(path, progress), None)
    # SHA-1 because git uses it; it identifies small text files that the hub gives no other sum for.
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    sha256, blob_id = hash_file(path, [hashlib.sha256(), blob], progress)
    return LocalContent(size, sha256, blob_id)


def resolve_commit(api: HfApi, repo: str, revision: str | None) -> tuple[str, bool]:
    """The full hash of the commit that ``revision`` (default: the main branch) is now, and whether the repository is private.

    Raises:
        WeightsError: no such repository or revision, no access, no hub.
    """
    with hub_errors(api, repo, revision=revision):
        info = api.model_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    if not is_commit(info.sha):
        raise WeightsError("the hub gives no commit for it.", key=repo, fix="check HF_ENDPOINT; update huggingface_hub.")
    return str(info.sha), bool(info.private)


def remote_files(api: HfApi, repo: str, commit: str) -> dict[str, RemoteFile]:
    """Every file of the repository at ``commit``, by its path.

    Raises:
        WeightsError: as ``resolve_commit``; or the listing is malformed, endless, or holds a name that is no plain relative path.
    """
    files: dict[str, RemoteFile] = {}
    with hub_errors(api, repo, revision=commit):
        try:
            for entry in api.list_repo_tree(repo, recursive=True, revision=commit):
                if isinstance(entry, RepoFile):
                    file = _checked(repo, entry)
                    if file.name in files:
                        raise _bad_listing(repo, f"it names {file.name} twice")
                    files[file.name] = file
                    if len(files) > MAX_FILES:
                        raise _bad_listing(repo, f"it has more than {MAX_FILES:,} files")
        except (KeyError, TypeError, AttributeError) as error:
            raise _bad_listing(repo, f"it is malformed ({type(error).__name__})") from error
    return files


def _checked(repo: str, entry: RepoFile) -> RemoteFile:
    name, size, blob_id = entry.path, entry.size, entry.blob_id
    if not isinstance(name, str) or not is_safe_path(name):
        raise WeightsError(
            f"has a file named {name!r:.200}, which is not a plain path inside a folder.",
            key=repo,
            fix="do not use this repository, or ask its owner to rename the file.",
        )
    if type(size) is not int or size < 0 or not isinstance(blob_id, str):
        raise _bad_listing(repo, f"{name} has no size or no id")
    if entry.lfs is None:
        if not _COMMIT.fullmatch(blob_id):
            raise _bad_listing(repo, f"{name} has no git id")
        return RemoteFile(name, size, blob_id)
    sha256 = entry.lfs.sha256
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or entry.lfs.size != size:
        raise _bad_listing(repo, f"{name} has no SHA-256, or two sizes")
    return RemoteFile(name, size, blob_id, sha256)


def is_safe_path(name: str) -> bool:
    """Whether a path of a repository stays inside the folder it is put in, on every system: plain names joined by ``/``."""
    return len(name) <= 4096 and all(is_plain_name(part) and not re.match(r"[A-Za-z]:", part) for part in name.split("/"))


def _bad_listing(repo: str, what: str) -> WeightsError:
    return WeightsError(
        f"the hub's list of files cannot be used: {what}.", key=repo, fix="check HF_ENDPOINT; use another copy of the model."
    )


def total_bytes(files: Iterable[RemoteFile]) -> int:
    """Bytes of all files together."""
    return sum(file.size for file in files)
