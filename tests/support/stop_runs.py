"""Real runs that are sent signals at random moments, and go on. ``python -m support.stop_runs FOLDER COUNT RANKS``
prints a report.

A run is compared with one that nothing happened to: losses and weights must have the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.rank_forks import fork_ranks, import_all
from support.sft_files import metrics, sft_run, write_files

from ms4_recipes import sft
from ms4_train.checkpoint.folders import committed_steps
from ms4_train.config.schema import SftRun
from ms4_train.parallel import progress

STEPS = 16
SLOW_SECONDS = 0.05


def configuration(folder: Path, output: str, ranks: int) -> SftRun:
    """Sixteen steps with a LoRA adapter and dropout, of which nothing is saved but at the end."""
    training = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 500}
    adapter = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"]}
    parallel = {"expert_parallel_size": ranks, "zero_stage": 0, "timeout_seconds": 60}
    return sft_run(folder, output, training=training, adapter=adapter, parallel=parallel)


def run(config: SftRun, folder: Path, ranks: int, event: Callable[[list[int]], Any] | None = None, pace: float = 0.0) -> dict[str, Any]:
    """How the processes of a run ended. ``pace`` is a pause in every phase, so that signals come in all of them."""

    def entered(place: progress.Place) -> None:
        (folder / "place").write_text(f"{place.phase} {place.step}")
        if place.step:
            time.sleep(pace)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        if rank == 0:
            progress.listen(entered)
        if ranks == 1:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name)
        sft.run(config)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "place").unlink(missing_ok=True)
    return fork_ranks(work, folder, ranks=ranks, timeout=120, event=event).report()


def reach(folder: Path, seconds: float) -> Callable[[], str]:
    """Wait until the steps have begun, and then some."""

    def wait() -> str:
        path = folder / "place"
        while not path.exists() or path.read_text()[-1:] in ("", "0"):
            time.sleep(0.01)
        time.sleep(seconds)
        return path.read_text()

    return wait


def fingerprint(config: SftRun, folder: Path) -> dict[str, Any]:
    """Exact losses, and the sum of what was exported."""
    output = Path(config.output_dir)
    losses = [loss.hex() for loss in metrics(folder, output.name).values()]
    return {"losses": losses, "weights": hashlib.sha256((output / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()}


def stopped(folder: Path, name: str, ranks: int, draw: random.Random) -> dict[str, Any]:
    """SIGTERM to one rank, or to all, at a random moment; then the same run again."""
    config = configuration(folder, name, ranks)
    wait = reach(folder / f"{name} first", draw.uniform(0, 2.2))
    to_all = draw.random() < 0.5
    seen: dict[str, Any] = {}

    def event(processes: list[int]) -> None:
        seen["place"] = wait()
        for process in processes if to_all else processes[-1:]:
            os.kill(process, signal.SIGTERM)

    first = run(config, folder / f"{name} first", ranks, event, pace=SLOW_SECONDS)
    saved = [step for step, _ in committed_steps(Path(config.output_dir) / "checkpoints")]
    second = run(config, folder / f"{name} second", ranks)
    report = {**seen, "codes": first["codes"], "seconds": first["seconds"], "left": first["left"] + second["left"], "saved": saved}
    report |= {"resumed": second["codes"], "output": first["output"] + second["output"], **fingerprint(config, folder)}
    shutil.rmtree(config.output_dir)
    return report


def interrupted_twice(folder: Path, ranks: int) -> dict[str, Any]:
    """SIGINT twice within a long step, and the same run again."""
    config = configuration(folder, "twice", ranks)
    wait = reach(folder / "twice first", 0.3)

    def event(processes: list[int]) -> None:
        wait()
        for _ in range(2):
            for process in processes:
                os.kill(process, signal.SIGINT)
            time.sleep(0.3)

    first = run(config, folder / "twice first", ranks, event, pace=1.5)
    second = run(config, folder / "twice second", ranks)
    return {"codes": first["codes"], "seconds": first["seconds"], "left": first["left"] + second["left"], "resumed": second["codes"]} | {
        "output": first["output"] + second["output"],
        **fingerprint(config, folder),
    }


def early(folder: Path, ranks: int) -> dict[str, Any]:
    """SIGTERM while the rows and the model are read."""
    config = configuration(folder, "early", ranks)

    def event(processes: list[int]) -> None:
        while not (folder / "early" / "place").exists():
            time.sleep(0.005)
        for process in processes:
            os.kill(process, signal.SIGTERM)

    return run(config, folder / "early", ranks, event)


def main() -> None:
    folder, count, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import_all(with_deepspeed=False, with_peft=True)
    write_files(folder)
    draw = random.Random(os.environ.get("MS4_STOP_SEED", "1"))
    whole = configuration(folder, "whole", ranks)
    report: dict[str, Any] = {"whole": run(whole, folder / "whole run", ranks) | fingerprint(whole, folder)}
    report["stopped"] = [stopped(folder, f"stopped {index}", ranks, draw) for index in range(count)]
    report["twice"] = interrupted_twice(folder, ranks)
    report["early"] = early(folder, ranks)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
