"""Real runs of ``ms4 train`` on a real small file system that fills up, or on one that fails.

Run it as ``unshare -Urm python -m support.run_state_disk FOLDER WHAT...``: in a user namespace it may mount a tmpfs of any size. WHAT is
``sizes COUNT``, ``start COUNT``, ``continue`` or ``faults``; the results are printed as one JSON object, which
``tests/reliability/test_run_state_disk_full.py`` looks at. Every run is a fork that ends as the command line ends it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.forks import fork, wait
from support.run_state_calls import Call, Watcher, watched
from support.run_state_kills import LOADED_FIRST
from support.run_state_points import Point, kind_of, saving_points, step_of
from support.run_state_prints import committed, last_logged, names_in, print_of
from support.sft_files import sft_run, write_files

from ms4_recipes import sft  # noqa: F401 - so that no fork has to import it
from ms4_train.checkpoint import checkpoint_bytes
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.cli.main import main as ms4
from ms4_train.config.schema import SftRun
from ms4_train.errors import MS4Error
from ms4_train.tracking.jsonl import JsonlTracker

STEPS, EVERY = 12, 4
ROOMY = 24 << 20
"""Bytes of a file system on which nothing is missing."""


def run_file(folder: Path, output: Path, **training: Any) -> SftRun:
    """A full fine-tune, so that its state (2 MB) is large beside the pages of the file system and what else is written."""
    section = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": EVERY, "save_total_limit": 2, **training}
    return sft_run(folder, training=section, output_dir=str(output))


def train(
    config: SftRun, *, begin: Callable[[], None] = lambda: None, watcher: Watcher | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """``ms4 train`` in a fork: its exit code, and what it said on standard error."""
    output = Path(config.output_dir)
    file = Path(config.model.path).with_name(f"{output.name}.yaml")  # not on the small file system
    log = file.with_suffix(".log")
    file.write_text(config.model_dump_json())

    def work() -> None:
        with log.open("wb") as handle:
            os.dup2(handle.fileno(), 2)
        begin()
        with watched(watcher or Watcher(), output / "checkpoints"), contextlib.suppress(SystemExit):
            try:
                ms4(["train", str(file), *(["--dry-run"] if dry_run else [])])
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 70)

    code = wait(fork(work))
    return {"code": code, "said": log.read_text(), "reached": last_logged(output), "left": names_in(output / "checkpoints")}


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def ballast(disk: Path, left: int) -> None:
    """Another program takes the disk, all but ``left`` bytes."""
    space = os.statvfs(disk)
    size = space.f_bavail * space.f_frsize - left
    if size > 0:
        with (disk / "ballast").open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, size)


class Filler(Watcher):
    """Fills the disk at a point."""

    def __init__(self, point: Point, disk: Path, left: int) -> None:
        self._point, self._disk, self._left = point, disk, left

    def before(self, call: Call) -> None:
        if self._point.when == "before" and self._point.fits(call):
            ballast(self._disk, self._left)

    def after(self, call: Call) -> None:
        if self._point.when == "after" and self._point.fits(call):
            ballast(self._disk, self._left)


def state_of(root: Path) -> dict[str, Any]:
    """The committed steps, and what is wrong with the newest one."""
    folders = committed(root)
    try:
        damage = None if not folders else str(verify_folder(folders[-1]) - (step_of(folders[-1]) or 0) or "")
    except MS4Error as error:
        damage = str(error)
    return {"committed": [step_of(folder) for folder in folders], "damage": damage}


def sizes(folder: Path, count: int, straight: dict[str, Any]) -> list[dict[str, Any]]:
    """Room for 1 to 2.5 states: the disk fills after the first save, every other time in the middle of the second one."""
    found = []
    for number in range(count):
        room = 1 + 1.5 * number / (count - 1)
        with mounted(folder / "disk", ROOMY) as disk:
            config = run_file(folder, disk / "out")
            points = saving_points(2 * EVERY if number % 2 else EVERY)
            point = points["before the first file is made"] if number % 2 else points["after the rename is flushed"]
            filler = Filler(point, disk, int((room - 1) * straight["bytes"]))
            full = {"room": room, "amid": bool(number % 2), **train(config, watcher=filler), **state_of(disk / "out" / "checkpoints")}
            (disk / "ballast").unlink(missing_ok=True)
            resumed = train(config)
            found.append({**full, "resumed": resumed["code"], "said later": resumed["said"], "print": print_of(disk / "out", STEPS)})
    return found


def start(folder: Path, count: int, state_bytes: int) -> list[dict[str, Any]]:
    """A disk of 1 to 2.5 states from the beginning, by what the run itself reckons with; every other run is a dry one."""
    found = []
    for number in range(count):
        room = 1 + 1.5 * number / (count - 1)
        with mounted(folder / "disk", int(room * state_bytes)) as disk:
            config = run_file(folder, disk / "out", max_steps=EVERY)
            found.append({"room": room, "dry": not number % 2, **train(config, dry_run=not number % 2)})
    return found


def going_on(folder: Path, *, freed: bool) -> dict[str, Any]:
    """``on_save_error: continue``: the disk fills in the second save; two steps later there is room again, or there is not."""
    with mounted(folder / "disk", ROOMY) as disk:

        def begin() -> None:
            log = JsonlTracker.log

            def logging(self: JsonlTracker, done: int, metrics: Any) -> None:
                log(self, done, metrics)
                if done == 2 * EVERY + 2 and freed:
                    (disk / "ballast").unlink(missing_ok=True)

            JsonlTracker.log = logging  # type: ignore[method-assign]

        config = run_file(folder, disk / "out", on_save_error="continue")
        # Not a byte is left: metrics have no room either.
        filler = Filler(saving_points(2 * EVERY)["before the first file is made"], disk, 0)
        run = {**train(config, begin=begin, watcher=filler), **state_of(disk / "out" / "checkpoints")}
        if freed:
            return {**run, "print": print_of(disk / "out", STEPS)}
        (disk / "ballast").unlink()
        resumed = train(config)
        return {**run, "resumed": resumed["code"], "print": print_of(disk / "out", STEPS)}


class Failing(Watcher):
    """A call that fails with an error of the system."""

    def __init__(self, kind: str, on: str, number: int) -> None:
        self._kind, self._on, self._number = kind, on, number

    def before(self, call: Call) -> None:
        if call.kind == self._kind and kind_of(call.path) == self._on and step_of(call.path) == 2 * EVERY:
            raise OSError(self._number, os.strerror(self._number), str(call.path))


CALLS = [
    ("write", "tensors"),
    ("fsync", "tensors"),
    ("write", "rank file"),
    ("write", "state file"),
    ("fsync", "manifest"),
    ("fsync", "unfinished folder"),
    ("rename", "unfinished folder"),
]


def faults(folder: Path) -> list[dict[str, Any]]:
    """The second save meets a quota or a broken disk, at every kind of call; then the disk is well again."""
    found = []
    for (kind, on), number in itertools.product(CALLS, (errno.EDQUOT, errno.EIO)):
        config = run_file(folder, folder / "faulty")
        run = train(config, watcher=Failing(kind, on, number))
        run |= state_of(folder / "faulty" / "checkpoints")
        resumed = train(config)
        found.append({"call": f"{kind} {on}", "error": errno.errorcode[number], **run, "resumed": resumed["code"]})
        found[-1]["print"] = print_of(folder / "faulty", STEPS)
        shutil.rmtree(folder / "faulty")
    return found


def main(folder: Path, wanted: list[str]) -> None:
    for module in LOADED_FIRST:
        importlib.import_module(module)
    write_files(folder, rows=20)
    run = train(run_file(folder, folder / "straight"))
    newest = committed(folder / "straight" / "checkpoints")[-1]
    straight = {**run, **print_of(folder / "straight", STEPS), "bytes": sum(path.stat().st_size for path in newest.iterdir())}
    needed = checkpoint_bytes(straight["bytes"] // 12)
    results: dict[str, Any] = {"straight": straight, "needed": needed}
    works: dict[str, Callable[[int], Any]] = {
        "sizes": lambda count: sizes(folder, count, straight),
        "start": lambda count: start(folder, count, needed),
        "continue": lambda _: {"freed": going_on(folder, freed=True), "still full": going_on(folder, freed=False)},
        "faults": lambda _: faults(folder),
    }
    for text in wanted:
        name, _, count = text.partition(" ")
        results[name] = works[name](int(count or 0))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
