"""Whether a folder that all ranks will write to is one folder: rank 0 leaves a small file there, and every rank looks for it.

Two machines may each have a disk under the same name. Nothing fails then until the first save, which finds a part of each rank on another
disk. Exercise it: ``pytest tests/ms4_train/parallel/test_shared_folder.py``.

Not covered: two folders that are different for some later file only, and a disk that goes away during the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from ms4_train.errors import ParallelError
from ms4_train.parallel import progress
from ms4_train.parallel.alike import ranks_named
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.together import main_only
from ms4_train.storage import atomic_write_bytes, storage_errors

_LOG = logging.getLogger(__name__)
PREFIX = ".shared-"
NAME_DIGITS = 16
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, *[4.0] * 15)
"""Seconds before each look, a little over a minute together: so long may a network file system show an old view of a folder."""
PATIENT_LOOKS = 6
"""After so many rank 0 says what it waits for."""


def require_shared_folder(mesh: Mesh, folder: Path, *, key: str = "output_dir", pauses: Sequence[float] | None = None) -> None:
    """Refuse on every rank where one does not see what rank 0 wrote into ``folder``, which is made where it is absent. Collective.

    One process, and one that rehearses alone, does nothing.

    Args:
        mesh: of the ranks.
        folder: as this rank names it; a relative one begins at its own working folder.
        key: of the configuration, for the message.
        pauses: seconds before each look, alike on all ranks; default: ``PAUSES``.

    Raises:
        StorageError: rank 0 cannot write there; the others raise word of it.
        ParallelError: names the ranks that do not see the file, and their machines.
    """
    if mesh.expert_parallel_group is None:
        return
    folder = folder.absolute()
    token = mesh.all_gather_json(secrets.token_hex(16))[0]
    file = folder / f"{PREFIX}{token[:NAME_DIGITS]}"
    try:
        main_only(mesh, lambda: _leave(file, token))
        blind = _look_together(mesh, file, token, PAUSES if pauses is None else pauses)
    finally:
        if mesh.is_main:
            with contextlib.suppress(OSError):
                file.unlink()
    if blind is not None:
        error = ParallelError(f"is not one folder for all ranks: {blind}.", key=key, fix="let it be one folder that all machines see.")
        error.on_all_ranks = True
        raise error


def _leave(file: Path, token: str) -> None:
    with storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        for stale in file.parent.glob(PREFIX + "[0-9a-f]" * NAME_DIGITS):  # of a process that was killed here
            stale.unlink(missing_ok=True)
        atomic_write_bytes(file, token.encode())


def _look_together(mesh: Mesh, file: Path, token: str, pauses: Sequence[float]) -> str | None:
    """Look until all ranks see the file; who does not, in words, the same on every rank. None where all do.

    All look and pause together, so that nobody waits in a collective for longer than a pause.
    """
    own = {"host": socket.gethostname(), "folder": str(file.parent)}
    told: list[dict[str, str | bool]] = []
    for count, pause in enumerate(pauses):
        time.sleep(pause)
        progress.at("load")
        told = mesh.all_gather_json({**own, "sees": _sees(file, token)})
        blind = [rank for rank, one in enumerate(told) if not one["sees"]]
        if not blind:
            return None
        if count == PATIENT_LOOKS and mesh.is_main:
            who = ranks_named(blind, [str(one["host"]) for one in told])
            _LOG.warning("%s does not see yet what was written into %s; waiting %.0f s more.", who, file.parent, sum(pauses[count + 1 :]))
    hosts, folders = [str(one["host"]) for one in told], [one["folder"] for one in told]
    blind = [rank for rank, one in enumerate(told) if not one["sees"]]
    does = "does" if len(blind) == 1 else "do"
    return f"{ranks_named(blind, hosts)} {does} not see in {folders[blind[0]]} what rank 0 (host {hosts[0]}) wrote into {folders[0]}"


def _sees(file: Path, token: str) -> bool:
    for folder in reversed(file.parents):
        # Opening a folder makes a network file system ask anew what is in it.
        with contextlib.suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    try:
        with file.open("rb") as opened:
            return opened.read(len(token) + 1) == token.encode()
    except OSError:
        return False
