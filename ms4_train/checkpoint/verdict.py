"""Whether a checkpoint is good: found by all ranks together, each summing a part of the files, and the same answer on each of them.

Damage has to be proven, for what is damaged is set aside: it is what the main rank finds itself, or finds again where another rank
reported it. A rank that does not see what the main rank sees is a machine without the shared folder, and a read that the system refuses
says nothing of what a file holds: both are refusals, after which every checkpoint stays as it is.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_verdict.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from ms4_train.checkpoint.manifest import (
    DamagedError,
    FileSum,
    Manifest,
    OtherVersionError,
    UnreadableError,
    canonical_json,
    check_step,
    files_of_rank,
    read_manifest,
    verify_files,
)
from ms4_train.errors import CheckpointError
from ms4_train.parallel import Mesh, progress

ONE_FOLDER = "output_dir, and with it every checkpoint, must lie in one folder that all machines see"


@dataclass(frozen=True)
class Report:
    """What one rank found, as JSON values.

    Attributes:
        host: the rank's machine.
        manifest: sum of the manifest that it read; None where it read none.
        kind: of what is wrong; None for nothing. ``absent``: there is no such folder on this machine.
        message: in words.
        file: it is wrong in.
        fix: for it.
        reason: of the system, where it refused.
    """

    host: str
    manifest: str | None = None
    kind: Literal["damaged", "absent", "unreadable", "other version"] | None = None
    message: str = ""
    file: str = ""
    fix: str = ""
    reason: str = ""


def verdict(folder: Path, step: int | None, mesh: Mesh) -> CheckpointError | None:
    """What is wrong with a checkpoint, the same on every rank; None for nothing. Collective.

    Args:
        folder: of the checkpoint.
        step: that it must be of; None takes any.
        mesh: the ranks that share out the files.

    Returns:
        ``DamagedError`` for proven damage; ``OtherVersionError``, or another ``CheckpointError``, for a refusal that is no reason to set
        the checkpoint aside.
    """
    manifest, own = _look(folder, step, mesh.rank, mesh.world_size)
    reports = _gathered(own, mesh)
    error = refusal(folder, reports)
    if error is None and reports[0].kind is not None:
        error = _as_error(reports[0])
    elif error is None and (doubted := doubts(reports)):
        # What the other ranks found wrong, the main rank looks at itself.
        again, names = Report(own.host), {Path(reports[rank].file).name for rank in doubted}
        if mesh.is_main and manifest is not None:
            again = _summed(folder, {name: item for name, item in manifest.files.items() if name in names}, again)
        error = confirmed(reports, _gathered(again, mesh)[0])
    if error is not None:
        error.on_all_ranks = True
    return error


def _gathered(own: Report, mesh: Mesh) -> list[Report]:
    return [Report(**report) for report in mesh.all_gather_json(asdict(own))]


def _look(folder: Path, step: int | None, rank: int, ranks: int) -> tuple[Manifest | None, Report]:
    """This rank's part: the manifest, and its share of the files."""
    own = Report(socket.gethostname())
    try:
        manifest = read_manifest(folder)
        own = Report(own.host, sha256(canonical_json(asdict(manifest))).hexdigest())
        check_step(folder, manifest, step)
    except CheckpointError as error:
        return None, _reported(own, error)
    return manifest, _summed(folder, files_of_rank(manifest.files, rank, ranks), own)


def _summed(folder: Path, files: Mapping[str, FileSum], own: Report) -> Report:
    try:
        for name, expected in sorted(files.items()):
            progress.at("load")  # together they may take longer than a rank may be silent
            verify_files(folder, {name: expected})
    except CheckpointError as error:
        return _reported(own, error)
    return own


def _reported(own: Report, error: CheckpointError) -> Report:
    kind, reason = "damaged", ""
    if isinstance(error, UnreadableError):
        kind, reason = "absent" if error.is_absent else "unreadable", error.reason
    elif isinstance(error, OtherVersionError):
        kind = "other version"
    return Report(own.host, own.manifest, kind, error.message, error.file or "", error.fix or "", reason)


def refusal(folder: Path, reports: Sequence[Report]) -> CheckpointError | None:
    """Why nothing can be said of the checkpoint: a rank cannot read it, or does not see the main rank's folder. None for no reason."""
    main = reports[0]
    if main.kind in ("unreadable", "absent"):
        return _unreadable(reports, 0)
    if absent := [rank for rank, report in enumerate(reports) if report.kind == "absent"]:
        return unseen(_hosts(reports), absent, "not see this folder; {main} does", folder)
    if unread := [rank for rank, report in enumerate(reports) if report.kind == "unreadable"]:
        return _unreadable(reports, unread[0])
    if main.kind is not None:
        return None
    other = [rank for rank, report in enumerate(reports) if report.manifest not in (None, main.manifest) or report.kind == "other version"]
    return unseen(_hosts(reports), other, "not see the same checkpoint here as {main}", folder) if other else None


def doubts(reports: Sequence[Report]) -> list[int]:
    """The ranks beside the main one that found damage."""
    return [rank for rank, report in enumerate(reports) if rank > 0 and report.kind == "damaged"]


def confirmed(reports: Sequence[Report], again: Report) -> CheckpointError:
    """What follows from damage that other ranks found, once the main rank has looked at the same files: ``again`` is what it found."""
    if again.kind == "damaged":
        return _as_error(again)
    if again.kind is not None:
        return _unreadable([again, *reports[1:]], 0)
    ranks = doubts(reports)
    problem = reports[ranks[0]].message.removeprefix("the checkpoint is damaged: ").rstrip(".")
    return unseen(_hosts(reports), ranks, f"not see what {{main}} sees there ({problem})", reports[ranks[0]].file)


def _as_error(report: Report) -> CheckpointError:
    kind = OtherVersionError if report.kind == "other version" else DamagedError
    return kind(report.message, file=report.file, fix=report.fix)


def _unreadable(reports: Sequence[Report], rank: int) -> CheckpointError:
    report = reports[rank]
    where = f" on rank {rank} (host {report.host})" if len(reports) > 1 else ""
    return CheckpointError(
        f"the checkpoint cannot be read{where}: {report.reason}. Nothing is known of what it holds, so it was not renamed.",
        file=report.file,
        fix="mend the disk, the mount or the permissions and start again, or name another checkpoint in training.resume_from_checkpoint.",
    )


def _hosts(reports: Sequence[Report]) -> list[str]:
    return [report.host for report in reports]


def unseen(hosts: Sequence[str], ranks: Sequence[int], what: str, file: str | Path) -> CheckpointError:
    """The refusal where ranks see another folder than the main one.

    Args:
        hosts: the machine of every rank.
        ranks: that see another folder.
        what: they do, from "not"; ``{main}`` stands for the main rank.
        file: it is about.
    """
    first = f"rank {ranks[0]} (host {hosts[ranks[0]]})"
    who = f"{first} does" if len(ranks) == 1 else f"{first} and {len(ranks) - 1} more do"
    return CheckpointError(
        f"{who} {what.replace('{main}', f'the main rank (host {hosts[0]})')}. Nothing of it was renamed.",
        file=file,
        fix=f"{ONE_FOLDER}: mount it on {hosts[ranks[0]]} too and start again.",
    )
