"""Downloading one copy of a model from a hub into a folder, at one commit, every file checked before it gets its name.

Files arrive in the hidden folder ``OUT/.pull``. Each one is compared with the hub's size and sum (SHA-256 for large files, git's id for
small ones), flushed, and moved into ``OUT``; ``SHA256SUMS`` and ``hub.json`` are written last. So a file in ``OUT`` is whole, and a folder
with ``SHA256SUMS`` is complete. The same command goes on after an interruption: files that are there are hashed again, the others are
downloaded. Exercise it: ``pytest tests/ms4_train/weights/hub/test_pull.py``, or ``ms4 pull --help``.

Not covered: going on inside a file after the process ended (huggingface_hub goes on only while it runs, and starts a file again that
another process left); files in folders of the repository.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ms4_train.errors import StorageError, WeightsError
from ms4_train.storage import require_free_bytes
from ms4_train.weights.checksums import SUMS_FILE, Progress, check_sums, read_sums, write_sums
from ms4_train.weights.hub.download import STAGING_FOLDER, download_all, remove_staging, staging
from ms4_train.weights.hub.failures import hub_errors, open_hub
from ms4_train.weights.hub.listing import RemoteFile, is_commit, remote_files, resolve_commit, total_bytes
from ms4_train.weights.hub.record import HubRecord, read_record, write_record
from ms4_train.weights.hub.selection import HubLayout, choose
from ms4_train.weights.layouts.names import and_more

MARGIN_BYTES = 16 << 20
"""Room for folder entries and the download's own small files."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PullResult:
    """What ``pull`` did: where the files are, from which commit, which layouts and files they are, and bytes that were downloaded."""

    folder: Path
    repo: str
    commit: str
    layouts: tuple[str, ...]
    files: tuple[str, ...]
    downloaded_bytes: int


def pull(
    repo: str,
    out: str | Path,
    *,
    revision: str | None = None,
    layout: HubLayout = "auto",
    token: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    check: bool = False,
    say: Callable[[str], None] = _log.info,
    progress: Progress | None = None,
) -> PullResult:
    """Download a model's files and check every one of them.

    Args:
        repo: ``owner/name``.
        out: folder to make, or one that an earlier pull of the same commit left, whole or not.
        revision: branch, tag or commit; a full commit hash never moves, and needs no network where the folder is complete.
        layout: which copy: ``native`` (what vLLM and SGLang serve), ``hf``, ``auto`` (native where there is one, else hf, else an
            adapter), or ``all`` (everything but pickles and programs). A second pull of the same commit may add another copy.
        token: access token; default: ``HF_TOKEN`` or ``hf auth login``.
        endpoint: address of the hub; default: ``HF_ENDPOINT`` or huggingface.co.
        dry_run: say what would be downloaded, and stop.
        check: of a folder that is complete already, hash every file rather than compare sizes.
        say: takes each line for the user.
        progress: told the bytes hashed of a complete folder (``check``).

    Raises:
        WeightsError: the hub refuses or cannot be reached, lists a hostile name, has no such copy; a file that came is not the one that
            the hub lists (the others are kept, and the next pull downloads that one again); ``out`` holds another commit.
        StorageError: too little space, or ``out`` holds something else.
    """
    out = Path(out)
    record = read_record(out)
    pinned = record is not None and is_commit(revision) and (repo, revision) == (record.repo, record.commit)
    if record is not None and pinned and _has(record, layout) and (done := _complete(out, record, check, say, progress)):
        return done
    api = open_hub(endpoint, token)
    commit, _ = resolve_commit(api, repo, revision)
    say(f"{repo}: commit {commit}")
    if revision is None:
        _log.warning("no revision was named, so the main branch was taken; --revision %s always gives these files.", commit)
    _refuse_other_content(out, record, repo, commit)
    if record is not None and _has(record, layout) and (done := _complete(out, record, check, say, progress)):
        return done
    files = remote_files(api, repo, commit)
    taken, names = choose(repo, files, layout)
    chosen = {name: files[name] for name in names}
    if record is not None:  # of the same commit: what it lost since is fetched again too
        chosen |= {name: files[name] for name in record.files if name in files}
    _describe(files, chosen, taken, layout, say)
    missing = {name: file for name, file in chosen.items() if not _is_held(out, file)}
    require_free_bytes(out, total_bytes(missing.values()) + MARGIN_BYTES)
    say(f"{len(missing)} of {len(chosen)} files, {total_bytes(missing.values()):,} bytes, to download")
    if dry_run:
        return PullResult(out, repo, commit, (taken,), tuple(names), 0)
    new = HubRecord(repo, revision, commit, (taken,), chosen)
    return _fetch(api, out, record, new, total_bytes(missing.values()), say)


def _has(record: HubRecord, layout: HubLayout) -> bool:
    return layout == "auto" or layout in record.layouts or "all" in record.layouts


def _complete(out: Path, record: HubRecord, check: bool, say: Callable[[str], None], progress: Progress | None) -> PullResult | None:
    """The result for a folder that holds everything of its record already; None where a file of it, or ``SHA256SUMS``, is missing."""
    sums = read_sums(out)
    if sums is None or any(name not in sums or not (out / name).is_file() for name in record.files):
        return None
    _refuse_changed(out, record)
    if check:
        check_sums(out, sorted(record.files), progress=progress)
    how = f"sizes and {SUMS_FILE} checked" if check else "sizes checked"
    say(f"{out} already holds {record.repo} at {record.commit} ({', '.join(record.layouts)}; {len(record.files)} files, {how})")
    return PullResult(out, record.repo, record.commit, record.layouts, tuple(sorted(record.files)), 0)


def _refuse_changed(out: Path, record: HubRecord) -> None:
    """Raise where a file that was whole has another size now: it may be the user's work, so it is not replaced."""
    changed = [file for _, file in sorted(record.files.items()) if (out / file.name).is_file() and _size(out / file.name) != file.size]
    if changed:
        raise WeightsError(
            f"was changed after it was pulled: it has {_size(out / changed[0].name):,} bytes instead of"
            f" {changed[0].size:,}{and_more(changed)}.",
            file=out / changed[0].name,
            fix="delete or move the file and pull again, or pull into another folder.",
        )


def _refuse_other_content(out: Path, record: HubRecord | None, repo: str, commit: str) -> None:
    """Raise unless ``out`` is absent, empty, or holds a whole or unfinished pull of this commit."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise StorageError("exists and is not a folder.", file=out, fix="choose another name.")
    begun = record or read_record(out / STAGING_FOLDER)
    if begun is None:
        names = sorted(entry.name for entry in out.iterdir() if entry.name != STAGING_FOLDER)
        if names:
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise StorageError(f"exists and holds {shown}, which no pull left there.", file=out, fix="choose another folder.")
    elif (begun.repo, begun.commit) != (repo, commit):
        what = "holds" if record else "holds an unfinished pull of"
        raise WeightsError(
            f"{what} {begun.repo} at {begun.commit}, not {repo} at {commit}.",
            file=out,
            fix=f"choose another folder, or use --revision {begun.commit}.",
        )


def _describe(files: dict[str, RemoteFile], chosen: dict[str, RemoteFile], taken: str, layout: str, say: Callable[[str], None]) -> None:
    left = [file for name, file in files.items() if name not in chosen]
    chose = f"layout {taken}" + (" (chosen automatically)" if layout == "auto" else "")
    say(f"{chose}: {len(chosen)} files, {total_bytes(chosen.values()):,} bytes")
    if left:
        say(f"left out: {len(left)} files, {total_bytes(left):,} bytes")


def _is_held(out: Path, file: RemoteFile) -> bool:
    """Whether the file, or a download of it that is not checked yet, is there in full size."""
    return any(path.is_file() and _size(path) == file.size for path in (out / file.name, out / STAGING_FOLDER / file.name))


def _size(path: Path) -> int:
    return path.stat().st_size


def _fetch(api: HfApi, out: Path, record: HubRecord | None, new: HubRecord, missing_bytes: int, say: Callable[[str], None]) -> PullResult:
    with hub_errors(api, new.repo, revision=new.commit, folder=out), staging(out):
        held: dict[str, str] = {}
        if record is not None:
            # Files of a finished pull were checked then; only what is missing or new is fetched.
            _refuse_changed(out, record)
            sums = read_sums(out) or {}
            held = {name: sums[name] for name in record.files if name in sums and name in new.files and (out / name).is_file()}
        write_record(out / STAGING_FOLDER, new)
        wanted = {name: file for name, file in new.files.items() if name not in held}
        sums = held | download_all(api, new.repo, new.commit, wanted, out, say)
        layouts = tuple(dict.fromkeys([*(record.layouts if record else ()), *new.layouts]))
        write_sums(out, {name: sums[name] for name in new.files})
        write_record(out, HubRecord(new.repo, new.revision, new.commit, layouts, new.files))
        remove_staging(out)
    say(f"{out}: {len(new.files)} files whole; {SUMS_FILE} written")
    return PullResult(out, new.repo, new.commit, layouts, tuple(sorted(new.files)), missing_bytes)
