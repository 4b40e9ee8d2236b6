"""One rank of the checks of run state on several ranks. ``run_ranks(ranks_worker.py, folder)`` writes folder/RANK.json.

The engine is the plain one: ranks that hold the same values share out the writing, so every rank writes a piece of every parameter.
"""

import json
import sys
import time
from pathlib import Path

import torch
from support.run_state import SmallModel, exported, saver, train_small

from ms4_train.checkpoint import find_saved_run, part
from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import MS4Error, TrainingError
from ms4_train.parallel import init_mesh
from ms4_train.parallel.local import LocalEngine


def engine_of(mesh, seed=0, steps=0):
    torch.manual_seed(7)  # the same rows on every rank, so that one process can do the same steps
    engine = LocalEngine(SmallModel(seed), mesh, training=TrainingSection(learning_rate=0.05, weight_decay=0.1))
    train_small(engine, steps)
    return engine


def settle(made, mesh):
    made.settle(mesh.all_gather_json(made.status()))


def names(root, mesh):
    """What lies there, once every rank is done with it."""
    mesh.barrier()
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    mesh.barrier()
    return found


def bits(engine):
    return {f"{name}/{kind}": tensor.tolist() for name, (tensors, _) in exported(engine).items() for kind, tensor in tensors.items()}


def check_saved(mesh, folder):
    """Rank 1 writes late: nothing is committed before it is done, and training goes on meanwhile."""
    root, report = folder / "saved", {}
    engine = engine_of(mesh, steps=2)
    before = bits(engine)
    write = part.write_synced

    def late(path, *parts, **keys):
        time.sleep(1.0)
        return write(path, *parts, **keys)

    part.write_synced = late if mesh.rank == 1 else write
    with saver(root, engine) as made:
        target = made.save(2, {"loader": {"row": 4}})
        settle(made, mesh)
        report["while writing"] = names(root, mesh)
        train_small(engine, 1)
        for _ in range(200):
            settle(made, mesh)
            if made.status() is None:
                break
            time.sleep(0.05)
        report["after"] = names(root, mesh)
        report["files"] = names(target, mesh)
        part.write_synced = write
        made.save(3, {"loader": {"row": 6}})  # the end of the run waits for it
    report["at the end"] = names(root, mesh)
    other = engine_of(mesh, seed=1)
    saved = find_saved_run(root, str(target), mesh)
    saved.restore(other, seed=0)
    report["same"] = bits(other) == before
    report["differs"] = bits(engine_of(mesh, seed=1)) != before
    return report


def check_failure(mesh, folder):
    """Rank 1 cannot write: all ranks hear of it at the next boundary, and the folder goes."""
    report = {}
    for name, error in (("full", OSError(28, "No space left on device")), ("other", ValueError("unexpected"))):
        root = folder / f"failure {name}"
        write = part.write_synced

        def failing(path, *parts, error=error, write=write, **keys):
            if mesh.rank == 1:
                raise error
            return write(path, *parts, **keys)

        part.write_synced = failing
        made = saver(root, engine_of(mesh, steps=1))
        made.save(1, {})
        made._save.writer.wait()
        try:
            settle(made, mesh)
        except MS4Error as caught:
            report[name] = [type(caught).__name__, str(caught), caught.on_all_ranks]
        part.write_synced = write
        report[f"{name} left"] = names(root, mesh)
        made.save(2, {})
        made.finish()
        report[f"{name} later"] = names(root, mesh)
    return report


def check_failure_while_waited_for(mesh, folder):
    """Rank 1 fails while its live state is written, or taken: the save itself raises on both."""
    report, write, live = {}, part.write_synced, part.HeldPart.live_in
    for name, error in (("written", OSError(28, "No space left on device")), ("taken", ValueError("unexpected"))):

        def failing(*arguments, error=error, **keys):
            raise error

        root = folder / f"waited for, {name}"
        made = saver(root, engine_of(mesh, steps=1), background=False)
        if mesh.rank == 1:
            part.write_synced = failing if name == "written" else write
            part.HeldPart.live_in = failing if name == "taken" else live
        try:
            made.save(1, {})
        except MS4Error as caught:
            report[name] = [type(caught).__name__, caught.on_all_ranks]
        part.write_synced, part.HeldPart.live_in = write, live
        report[f"{name} left"] = names(root, mesh)
        made.save(2, {})
        report[f"{name} later"] = names(root, mesh)
    return report


def check_commit_failure(mesh, folder):
    """The disk fills up when the main rank writes what is its own."""
    from ms4_train.checkpoint import save as save_module

    root, manifest = folder / "commit failure", save_module.write_manifest

    def failing(*arguments):
        raise OSError(28, "No space left on device")

    made = saver(root, engine_of(mesh), go_on=True)
    save_module.write_manifest = failing
    made.save(1, {})
    try:
        made.finish()
    except MS4Error as caught:
        return [type(caught).__name__, caught.on_all_ranks, names(root, mesh)]
    finally:
        save_module.write_manifest = manifest
    return None


def check_alone(mesh, folder):
    """An error of one rank alone ends its block without a meeting, which the other would not come to."""
    root = folder / "alone"
    made = saver(root, engine_of(mesh))
    try:
        with made:
            made.save(1, {})
            raise TrainingError(f"of rank {mesh.rank}")
    except TrainingError:
        return names(root, mesh)


def check_damage(mesh, folder):
    """A file of rank 1 is damaged; every rank goes to the checkpoint before."""
    root = folder / "damage"
    engine = engine_of(mesh)
    with saver(root, engine, background=False) as made:
        for step in (1, 2):
            train_small(engine, 1)
            made.save(step, {})
    if mesh.is_main:
        path = root / "step-000002" / "rank-00001-000.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
    mesh.barrier()
    saved = find_saved_run(root, "auto", mesh)
    assert saved is not None
    return [saved.step, names(root, mesh)]


def main() -> None:
    folder = Path(sys.argv[1])
    mesh = init_mesh(ParallelSection(zero_stage=0, timeout_seconds=60))
    checks = (check_saved, check_failure, check_failure_while_waited_for, check_commit_failure, check_alone, check_damage)
    report = {check.__name__.removeprefix("check_"): check(mesh, folder) for check in checks}
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
