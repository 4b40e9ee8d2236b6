"""Real runs on several gloo ranks of which one is killed, stopped or hangs. ``python -m support.rank_losses FOLDER quick|full`` reports.

The ranks are forks of one process that has imported everything, so a run costs little.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.rank_forks import fork_ranks, import_all, side_by_side
from support.sft_files import metrics, sft_run, write_files, write_rows

from ms4_recipes import sft
from ms4_train.config.schema import SftRun
from ms4_train.parallel import progress

STEPS, EVERY = 8, 2
TIMEOUT = 10
PHASES = ("forward", "optimizer", "save")
STEP = 6
OTHER_PHASES = {"load": 0, "data": STEP, "backward": STEP, "validation": STEP, "export": STEPS}
"""Phase -> the step in which it is disturbed."""
Disturbance = Callable[[], Any]


def configuration(folder: Path, output: str, ranks: int, *, zero_stage: int, accumulation: int = 1) -> SftRun:
    """Eight steps, saved and validated every second one; ``accumulation`` keeps the rows of a step where there are fewer ranks."""
    training = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": EVERY, "gradient_accumulation_steps": accumulation}
    training |= {"eval_strategy": "steps", "eval_steps": EVERY}
    parallel = {"expert_parallel_size": 2, "zero_stage": zero_stage, "timeout_seconds": TIMEOUT}
    data = {"validation": [{"path": str(folder / "c.jsonl")}]}
    return sft_run(folder, output, training=training, parallel=parallel, data=data)


def run(
    config: SftRun, ranks: int, folder: Path, disturb: Callable[[int, progress.Place], Any] | None = None, **keys: Any
) -> dict[str, Any]:
    """How the ranks of a run ended."""

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        if disturb is not None:
            progress.listen(lambda place: disturb(rank, place))
        sft.run(config)

    return fork_ranks(work, folder, ranks=ranks, timeout=90, **keys).report()


def at(who: int, phase: str, step: int, do: Disturbance) -> Callable[[int, progress.Place], Any]:
    """Call ``do`` in a rank at the first entry of a phase in a step, and note when."""

    def disturb(rank: int, place: progress.Place) -> None:
        if (rank, place.phase, place.step) == (who, phase, step):
            do()

    return disturb


def noted(folder: Path, do: Disturbance) -> Disturbance:
    """Write the time of the event before it happens: the ranks' clock is that of the test."""

    def noting() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "event").write_text(str(time.monotonic()))
        do()

    return noting


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(600)


def lost(folder: Path, name: str, ranks: int, who: int, phase: str, do: Disturbance, zero_stage: int) -> dict[str, Any]:
    """A run whose rank ``who`` is disturbed in a phase; in that of step 6 the run state of step 4 is saved."""
    step = OTHER_PHASES.get(phase, STEP)
    config = configuration(folder, f"{name} out", ranks, zero_stage=zero_stage)
    event = noted(folder / name, do)
    gone = (who,) if do is stop else ()
    report = run(config, ranks, folder / name, at(who, phase, step, event), gone=gone)
    then = float((folder / name / "event").read_text())
    report["after_event"] = [end - then for rank, end in enumerate(report["ends"]) if rank not in gone]
    report |= {"who": who, "place": f"{phase} of step {step}" if step else phase}
    report |= {"saved": sorted(path.name for path in Path(config.output_dir, "checkpoints").glob("step-*"))}
    shutil.rmtree(config.output_dir)
    return report


def restarted(folder: Path, zero_stage: int) -> dict[str, Any]:
    """A run of four ranks that is killed in step 6 and goes on with four and with two, against one that nothing happened to."""
    whole = configuration(folder, "whole", 4, zero_stage=zero_stage)
    report = {"whole": run(whole, 4, folder / "r0")["codes"]}
    broken = configuration(folder, "broken", 4, zero_stage=zero_stage)
    report["broken"] = run(broken, 4, folder / "r1", at(2, "optimizer", 6, kill))["codes"]
    shutil.copytree(folder / "broken", folder / "fewer")
    fewer = configuration(folder, "fewer", 2, zero_stage=zero_stage, accumulation=2)
    report["same"] = run(broken, 4, folder / "r2")["codes"]
    report["fewer"] = run(fewer, 2, folder / "r3")["codes"]
    report["output"] = "\n".join(path.read_text() for path in sorted(folder.glob("r?/output-*.txt")))
    for name in ("whole", "broken", "fewer"):
        report[f"{name} losses"] = list(metrics(folder, name).values())
        report[f"{name} model"] = hashlib.sha256((folder / name / "model" / "model.safetensors").read_bytes()).hexdigest()
        report[f"{name} left"] = sorted(path.name for path in (folder / name / "checkpoints").iterdir())
    return report


def cases(folder: Path, tier: str) -> dict[str, Callable[[], Any]]:
    """{name: case}"""

    def case(kind: str, do: Disturbance, ranks: int, who: int, phase: str, zero_stage: int) -> tuple[str, Callable[[], Any]]:
        name = f"{kind} {who} of {ranks} in {phase}"
        return name, lambda: lost(folder, name, ranks, who, phase, do, zero_stage)

    if tier == "quick":
        return dict([case("kill", kill, 2, 0, "save", 0), case("stop", stop, 2, 1, "forward", 0)])
    kills = [case("kill", kill, 4, who, phase, 2) for who in range(4) for phase in PHASES]
    kills += [case("kill", kill, 4, who % 4, phase, 2) for who, phase in enumerate(OTHER_PHASES)]
    hangs = [case("stop", stop, 4, who, PHASES[who % 3], 2) for who in range(4)]
    hangs += [case("hang", hang, 4, who, PHASES[(who + 1) % 3], 2) for who in range(4)]
    return {**dict(kills), **dict(hangs), "restarted": lambda: restarted(folder, 2)}


def main() -> None:
    folder, tier = Path(sys.argv[1]), sys.argv[2]
    import_all(with_deepspeed=tier == "full")
    write_files(folder)
    write_rows(folder / "c.jsonl", 8, seed=3)
    print(json.dumps(side_by_side(cases(folder, tier), folder / "reports", most=2)))


if __name__ == "__main__":
    main()
