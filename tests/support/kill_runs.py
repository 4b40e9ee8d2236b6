"""Trains small runs in forked processes that are really killed, and goes on from what they leave.

Run it as ``python -m support.kill_runs FOLDER``. torch is imported once; every run is a fork of that process, so a kill and a resume cost a
second and not ten. What happened is printed as one JSON object, which ``tests/recipes/ms4_recipes/test_sft_resume.py`` looks at.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - so that no fork has to import it
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.forks import fork, wait
from support.layouts import native_fp8_folder
from support.sft_files import sft_run, write_files

from ms4_recipes import sft
from ms4_train.checkpoint import manifest, part, save
from ms4_train.config.schema import SftRun
from ms4_train.tracking.jsonl import JsonlTracker

STEPS, SAVED = 20, 10
# Saves are waited for, so that what a killed run leaves does not depend on how far a thread came.
TRAINING = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "save_total_limit": 2, "save_async": False}
LORA = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"]}
EVERYTHING = {"r": 4, "target_modules": ATTENTION + SHARED, "target_parameters": STACKS}


def in_fork(work: Callable[[], Any]) -> int:
    """Exit code of ``work`` in a process of its own; minus the signal when it was killed."""
    return wait(fork(work))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_step(step: int, number: int = signal.SIGKILL) -> None:
    """Receive a signal when the metrics of a step are written, so in the middle of the loop."""
    log = JsonlTracker.log

    def logging(self, done, metrics):
        log(self, done, metrics)
        if done == step:
            os.kill(os.getpid(), number)

    JsonlTracker.log = logging


def die_before(owner: Any, name: str, step: int) -> None:
    """Die when the save of ``step`` reaches a function."""
    original = getattr(owner, name)

    def dying(*arguments, **keys):
        if f"step-{step:06d}" in str(arguments[0]) or any(f"step-{step:06d}" == path.name for path in Path(arguments[0]).glob("step-*")):
            die()
        return original(*arguments, **keys)

    setattr(owner, name, dying)


def die_in_half_a_file(step: int) -> None:
    """Die with half of a safetensors file written."""

    def half(path, *parts, **keys):
        if f"step-{step:06d}" in str(path):
            data = b"".join(parts)
            path.write_bytes(data[: len(data) // 2])
            die()
        return write_synced(path, *parts, **keys)

    write_synced = part.write_synced
    part.write_synced = half


def scenarios() -> dict[str, Callable[[], None]]:
    """Where a run dies; all of them after step 10 was saved and before step 20 was."""
    return {
        "after step 13": lambda: die_after_step(13),
        "after the last step": lambda: die_after_step(STEPS),
        "in half a file": lambda: die_in_half_a_file(STEPS),
        "before the manifest": lambda: die_before(save, "write_manifest", STEPS),
        "before the rename": lambda: die_before(save, "fsync_folder", STEPS),
        "before pruning": lambda: die_before(save, "prune", STEPS),
    }


def fingerprint(output: Path) -> dict[str, Any]:
    """Everything a finished run leaves, except times: exact losses, sums of all files of the last checkpoint and of the export."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [(line["step"], line["loss"].hex(), line["grad_norm"].hex(), line["epoch"]) for line in lines if "grad_norm" in line]
    last = output / "checkpoints" / f"step-{STEPS:06d}"
    files = [*last.glob("rank-*"), *(path for kind in ("model", "adapter") for path in (output / kind).glob("*.safetensors"))]
    state = json.loads((last / "state.json").read_text())
    return {
        "losses": rows,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)},
        "loader": state["loader"],
        "folders": sorted(path.name for path in (output / "checkpoints").iterdir()),
    }


def kill_and_resume(config: SftRun, prepare: Callable[[], None], then: SftRun | None = None) -> dict[str, Any]:
    """Run until ``prepare`` kills it, and go on with the same configuration, or with ``then``."""
    output = Path(config.output_dir)
    shutil.rmtree(output, ignore_errors=True)

    def doomed() -> None:
        prepare()
        sft.run(config)

    code = in_fork(doomed)
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    resumed = in_fork(lambda: sft.run(then or config))
    return {"killed": code, "left": left, "resumed": resumed, **fingerprint(output)}


def change_state(output: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a JSON file of the checkpoint at step 10 and make the manifest agree: damage that no sum can find."""
    folder = output / "checkpoints" / f"step-{SAVED:06d}"
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_bytes(manifest.canonical_json(content))
    listed = manifest.read_manifest(folder)
    data = (folder / file).read_bytes()
    listed.files[file] = manifest.FileSum(hashlib.sha256(data).hexdigest(), len(data))
    (folder / "MANIFEST.json").unlink()
    manifest.write_manifest(folder, listed)


def resume_changed(config: SftRun, file: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Kill after step 13, alter the saved state, go on."""
    output = Path(config.output_dir)

    def doomed() -> None:
        die_after_step(13)
        sft.run(config)

    in_fork(doomed)
    change_state(output, file, change)
    code = in_fork(lambda: sft.run(config))
    return {"resumed": code, **fingerprint(output)}


def straight(config: SftRun) -> dict[str, Any]:
    code = in_fork(lambda: sft.run(config))
    return {"code": code, **fingerprint(Path(config.output_dir))}


def signalled(config: SftRun) -> dict[str, Any]:
    """SIGTERM in step 7, then the same command again."""
    output = Path(config.output_dir)

    def stopped() -> None:
        die_after_step(7, signal.SIGTERM)
        sft.run(config)

    code = in_fork(stopped)
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    resumed = in_fork(lambda: sft.run(config))
    return {"code": code, "left": left, "resumed": resumed, **fingerprint(output)}


def other_configuration(config: SftRun) -> int:
    """Go on from a finished run with another data section."""
    data = config.data.model_copy(update={"max_length": 128})
    return in_fork(lambda: sft.run(config.model_copy(update={"data": data})))


def main(folder: Path) -> None:
    write_files(folder)
    full, lora = sft_run(folder, "full", training=TRAINING), sft_run(folder, "lora", training=TRAINING, adapter=LORA)

    native_fp8_folder(folder / "fp8 base", tokenizer=True)
    fp8 = sft_run(folder, "fp8", training=TRAINING, adapter=EVERYTHING, model={"path": str(folder / "fp8 base")})

    def copy(config: SftRun, name: str) -> SftRun:
        return config.model_copy(update={"output_dir": str(folder / name)})

    results: dict[str, Any] = {"straight": straight(full), "straight lora": straight(lora), "straight fp8": straight(fp8)}
    results["kills"] = {name: kill_and_resume(copy(full, "killed"), prepare) for name, prepare in scenarios().items()}
    results["lora killed"] = kill_and_resume(copy(lora, "lora killed"), lambda: die_after_step(13))
    results["fp8 killed"] = kill_and_resume(copy(fp8, "fp8 killed"), lambda: die_after_step(13))
    wide = fp8.model_copy(update={"model": fp8.model.model_copy(update={"dequantize": True})})
    results["fp8 resumed dequantised"] = kill_and_resume(copy(fp8, "fp8 wide"), lambda: die_after_step(13), copy(wide, "fp8 wide"))
    results["signalled"] = signalled(copy(full, "signalled"))
    results["other loader state"] = resume_changed(
        copy(full, "loader"), "state.json", lambda state: state["loader"]["order"].update(cursor=state["loader"]["order"]["cursor"] + 1)
    )
    results["forgotten carry-over"] = resume_changed(copy(full, "carry"), "state.json", lambda state: state["loader"].update(carry_over=[]))
    results["other random state"] = resume_changed(
        copy(lora, "random"), "rank-00000.json", lambda part: part["random"].update(torch=saved_by_another_seed())
    )
    results["other configuration"] = other_configuration(full)
    print(json.dumps(results))


def saved_by_another_seed() -> str:
    import torch

    from ms4_train.checkpoint.random_state import capture_random_state

    torch.manual_seed(12345)
    return capture_random_state()["torch"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
