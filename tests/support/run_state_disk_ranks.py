"""The disk fills under a run of two ranks: ``unshare -Urm python -m support.run_state_disk_ranks FOLDER COUNT``.

The parent mounts the disk and starts the ranks, which run this file too; rank 1, the one that commits nothing, meets the full disk as
well as rank 0. Results are printed as those of ``support.run_state_disk`` are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.distributed import free_port, rank_environment
from support.run_state_calls import Watcher, watched
from support.run_state_disk import EVERY, ROOMY, STEPS, Filler, mounted, run_file, state_of
from support.run_state_points import saving_points
from support.run_state_prints import committed, last_logged, names_in, print_of
from support.sft_files import write_files

from ms4_train.cli.main import main as ms4

RANKS = 2


def rank(file: str, disk: str, left: str) -> None:
    """One rank: rank 1 fills the disk when it begins to write the second save."""
    watcher = Watcher()
    if left != "all" and os.environ["RANK"] == "1":
        watcher = Filler(saving_points(2 * EVERY)["before the first file is made"], Path(disk), int(left))
    with watched(watcher, Path(disk)):
        ms4(["train", file])


def on_two_ranks(file: Path, disk: Path, left: int | None) -> tuple[list[int], list[str]]:
    """Exit codes of the ranks, and what each said."""
    port = free_port()
    command = [sys.executable, __file__, str(file), str(disk), "all" if left is None else str(left)]
    logs = [disk.with_name(f"rank {number}.log") for number in range(RANKS)]
    processes = []
    for number, log in enumerate(logs):
        with log.open("wb") as handle:
            processes.append(subprocess.Popen(command, env=rank_environment(number, RANKS, port), stdout=handle, stderr=handle))
    codes = [process.wait(900) for process in processes]
    return codes, [log.read_text() for log in logs]


def main(folder: Path, count: int) -> None:
    write_files(folder, rows=20)
    results: dict[str, Any] = {"sizes": []}
    size = 0
    for number in range(count + 1):
        with mounted(folder / "disk", ROOMY) as disk:
            config = run_file(folder, disk / "out")
            file = folder / "run.yaml"
            file.write_text(config.model_dump_json())
            room = None if number == 0 else (number - 1) / (count - 1)
            codes, said = on_two_ranks(file, disk, None if room is None else int(0.95 * room * size))
            root = disk / "out" / "checkpoints"
            if room is None:
                assert codes == [0, 0], said
                size = sum(path.stat().st_size for path in committed(root)[-1].iterdir())
                results["straight"] = print_of(disk / "out", STEPS)
                continue
            found = {"room": room, "codes": codes, "said": said, "left": names_in(root), "reached": last_logged(disk / "out")}
            found |= state_of(root)
            (disk / "ballast").unlink(missing_ok=True)
            resumed, later = on_two_ranks(file, disk, None)
            results["sizes"].append({**found, "resumed": resumed, "said later": later, "print": print_of(disk / "out", STEPS)})
    print(json.dumps(results))


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(*sys.argv[1:])
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
