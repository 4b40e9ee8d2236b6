"""One of two ranks that look for a checkpoint in ``run``, each from a folder of its own: only paths tell them apart, as machines would.

``run_ranks(verdict_worker.py, folder)``: rank R works in folder/R, where ``run`` is a link to what that rank is to see.
"""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

from support.run_state import SmallModel, saver

from ms4_train.checkpoint import find_saved_run, verdict
from ms4_train.checkpoint.manifest import MANIFEST_NAME, UnreadableError
from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import MS4Error
from ms4_train.parallel import init_mesh
from ms4_train.parallel.local import LocalEngine


def saved_run(mesh, shared):
    engine = LocalEngine(SmallModel(), mesh, training=TrainingSection(learning_rate=0.05))
    with saver(shared, engine, background=False) as made:
        for step in (1, 2):
            made.save(step, {})


def look(mesh, shared, resume="auto"):
    """What a start finds in ``run``, and what then lies in the folder that is meant."""
    found = {"step": None, "error": None}
    try:
        saved = find_saved_run(Path("run"), resume, mesh)
        found["step"] = saved and saved.step
    except MS4Error as error:
        found["error"] = [type(error).__name__, str(error), error.on_all_ranks]
    mesh.barrier()
    found["names"] = sorted(path.name for path in shared.iterdir())
    mesh.barrier()
    return found


def see(target):
    """Let ``run`` be this folder."""
    Path("run").unlink(missing_ok=True)
    Path("run").symlink_to(target)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def checks(mesh, folder):
    shared, empty = folder / "shared", folder / "empty"
    saved_run(mesh, shared)
    if mesh.is_main:
        empty.mkdir()
        shutil.copytree(shared, folder / "copy")
        for path in (folder / "copy" / "step-000002").glob("*.*"):  # whichever fall to the second rank: that follows from their sizes
            if path.name != MANIFEST_NAME:
                flip(path)
    mesh.barrier()
    see(shared)
    yield "both see it", look(mesh, shared)
    see(shared if mesh.rank == 0 else empty)
    yield "the second sees nothing", look(mesh, shared)
    yield "the second sees nothing of a named one", look(mesh, shared, "run/step-000001")
    see(shared if mesh.rank == 1 else empty)
    yield "the first sees nothing", look(mesh, shared)
    see(shared if mesh.rank == 0 else folder / "copy")
    yield "the second sees a damaged copy", look(mesh, shared)
    see(shared)
    true = verdict.verify_files

    def refused(place, files):
        if mesh.rank == 1:
            raise UnreadableError(place / next(iter(files)), "Stale file handle")
        true(place, files)

    verdict.verify_files = refused
    yield "the second cannot read", look(mesh, shared)
    verdict.verify_files = true
    yield "and then it can", look(mesh, shared)
    mesh.barrier()
    if mesh.is_main:
        flip(shared / "step-000002" / "rank-00001-000.safetensors")
        (shared / "step-000001" / "rank-00001.json").unlink()
    mesh.barrier()
    yield "damage", look(mesh, shared)


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    folder = Path(sys.argv[1])
    mesh = init_mesh(ParallelSection(zero_stage=0, timeout_seconds=60))
    own = folder / str(mesh.rank)
    own.mkdir()
    os.chdir(own)
    report = dict(checks(mesh, folder))
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
