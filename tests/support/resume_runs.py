"""Runs that are stopped after some step and gone on with, in many variants, and what they leave. For ``tests/reliability/test_resume_*``.

``python -m support.resume_runs FOLDER quick|whole`` runs the variants of one process in forks and prints what happened as one JSON object.
``tests/reliability/resume_worker.py`` is one rank of a run on several.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ms4_recipes import sft
from ms4_train.config import load_run
from ms4_train.config.schema import SftRun
from ms4_train.data import TrainLoader
from ms4_train.tracking.jsonl import JsonlTracker

STEPS = 8
KINDS = ("full", "lora", "vision", "vision, three workers")
STOPS = ("mid-epoch", "epoch end", "second epoch")
TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Variant:
    """What is trained, and where it is stopped."""

    kind: str
    packing: bool
    accumulation: int
    stop: str

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.kind}; {'packed' if self.packing else 'unpacked'}; accumulation {self.accumulation}; {self.stop}"

    @property
    def run_name(self) -> str:
        """Of the run, wherever it is stopped."""
        return f"{self.kind}-{self.packing}-{self.accumulation}".replace(", ", "-").replace(" ", "-")


def variants(tier: str) -> list[Variant]:
    """All of them, or for a quick look each value of each part at least once."""
    if tier == "whole":
        return [Variant(*parts) for parts in product(KINDS, (True, False), (1, 2), STOPS)]
    chosen = [(KINDS[0], True, 2, STOPS[0]), (KINDS[1], True, 1, STOPS[2]), (KINDS[1], False, 2, STOPS[1]), (KINDS[3], True, 1, STOPS[0])]
    return [Variant(*parts) for parts in chosen]


def log_rows(path: Path) -> None:
    """Write the rows of every batch that this process takes."""
    original = TrainLoader.next_batch

    def logging(loader: TrainLoader) -> Any:
        batch = original(loader)
        with path.open("a") as file:
            file.write(json.dumps(batch.row_ids) + "\n")
        return batch

    TrainLoader.next_batch = logging  # type: ignore[method-assign]


def stop_after(step: int) -> None:
    """Ask this process to stop when the metrics of a step are written, so inside the loop."""
    log = JsonlTracker.log

    def logging(tracker: JsonlTracker, done: int, metrics: Any) -> None:
        log(tracker, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    JsonlTracker.log = logging  # type: ignore[method-assign]


def rows_of_steps(paths: list[Path], accumulation: int) -> list[list[str]]:
    """The rows of each step, over all files of one part of a run, sorted: which rank and micro batch took them does not matter."""
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    steps = min(len(part) for part in lines) // accumulation
    return [
        sorted(row for part in lines for batch in part[step * accumulation : (step + 1) * accumulation] for row in batch)
        for step in range(steps)
    ]


def losses(output: Path) -> dict[int, tuple[str, str]]:
    """Loss and gradient norm of each step, in hexadecimal; of a repeated step the last ones."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"].hex(), line["grad_norm"].hex()) for line in lines if "grad_norm" in line}


def left_by(output: Path) -> dict[str, Any]:
    """Losses, and sums of the last state's tensors and of what was exported."""
    last = output / "checkpoints" / f"step-{STEPS:06d}"
    files = [*last.glob("*.safetensors"), *(path for kind in ("model", "adapter") for path in (output / kind).glob("*.safetensors"))]
    return {
        "losses": losses(output),
        "files": {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)},
        "loader": json.loads((last / "state.json").read_text())["loader"],
    }


def configuration(folder: Path, variant: Variant) -> SftRun:
    """A run of eight steps over few rows, so that there are several epochs."""
    from support.sft_files import sft_run

    training = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": STEPS,
        "gradient_accumulation_steps": variant.accumulation,
        "per_device_train_batch_size": 1 if variant.packing else 3,  # so that two epochs begin within the steps
        "lr_scheduler_type": "cosine",
    }
    lora = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"]}
    data: dict[str, Any] = {"packing": variant.packing, "max_length": 160}
    if variant.kind.startswith("vision"):
        workers = 3 if "three" in variant.kind else 1
        data |= {"train": [{"path": str(folder / "seeing" / "rows.jsonl")}], "max_length": 120, "images": {"workers": workers}}
        model = {"path": str(folder / "seeing" / "base")}
        return sft_run(folder, variant.run_name, training=training, data=data, model=model)
    data["train"] = [{"path": str(folder / "a.jsonl")}, {"path": str(folder / "b.jsonl"), "weight": 0.6}]
    adapter = {"adapter": lora} if variant.kind == "lora" else {}
    return sft_run(folder, variant.run_name, training=training, data=data, **adapter)


def stop_step(output: Path, variant: Variant) -> int:
    """The step after which the run is stopped, from the epochs that its metrics tell."""
    epochs = {
        line["step"]: line["epoch"] for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "epoch" in line
    }
    if variant.stop == "mid-epoch":
        return next(step for step, epoch in epochs.items() if 0.2 < epoch < 1)
    if variant.stop == "epoch end":
        return next(step for step, epoch in epochs.items() if epoch >= 1)
    return next(step for step, epoch in epochs.items() if epoch > 1)


def forget_random_state() -> None:
    """A resumed run that does not put its random numbers back."""
    from ms4_train.checkpoint import saved

    saved.restore_random_state = lambda state: None


def forget_position() -> None:
    """A resumed run that starts its rows from the beginning."""
    TrainLoader.load_state_dict = lambda self, state: None  # type: ignore[method-assign]


def one_process(folder: Path, tier: str) -> Iterator[dict[str, Any]]:
    """Run every variant straight, stopped and gone on with, and gone on with without a part of its state."""
    from support.forks import fork, wait

    def in_fork(config: SftRun, rows: Path, *before: Callable[[], None]) -> int:
        def work() -> None:
            log_rows(rows)
            for change in before:
                change()
            sft.run(config)

        return wait(fork(work))

    straight: dict[str, tuple[dict[str, Any], list[list[str]]]] = {}
    for variant in variants(tier):
        config = configuration(folder, variant)
        output = Path(config.output_dir)
        if variant.run_name not in straight:
            code = in_fork(config, folder / f"{variant.run_name}.rows")
            assert code == 0, (variant.name, code)
            straight[variant.run_name] = left_by(output), rows_of_steps([folder / f"{variant.run_name}.rows"], variant.accumulation)
        expected, expected_rows = straight[variant.run_name]
        stopped_at = stop_step(output, variant)
        report: dict[str, Any] = {"name": variant.name, "stopped at": stopped_at}
        stopped = config.model_copy(update={"output_dir": str(folder / "stopped")})
        shutil.rmtree(stopped.output_dir, ignore_errors=True)
        report["stopped"] = in_fork(stopped, folder / "stopped.rows", lambda step=stopped_at: stop_after(step))
        report["left"] = sorted(path.name for path in (Path(stopped.output_dir) / "checkpoints").iterdir())
        controls = {"position": forget_position} | ({"random state": forget_random_state} if variant.kind == "lora" else {})
        for name, forget in {"": lambda: None, **controls}.items():
            other = stopped.model_copy(update={"output_dir": str(folder / "resumed")})
            shutil.rmtree(other.output_dir, ignore_errors=True)
            shutil.copytree(stopped.output_dir, other.output_dir)
            rows = folder / "resumed.rows"
            rows.unlink(missing_ok=True)
            code = in_fork(other, rows, forget)
            found = left_by(Path(other.output_dir))
            differing = [key for key in expected if found[key] != expected[key]]
            taken = rows_of_steps([folder / "stopped.rows"], variant.accumulation) + rows_of_steps([rows], variant.accumulation)
            if taken != expected_rows:
                differing.append("rows")
            report[f"without {name}" if name else "resumed"] = {"code": code, "differing": differing}
        (folder / "stopped.rows").unlink()
        yield report


def write_inputs(folder: Path) -> None:
    """Models and rows, without and with images."""
    from support.image_rows import mixed_file
    from support.models import tiny_config
    from support.multimodal import tiny_multimodal, tiny_vision
    from support.sft_files import TINY_RANKS, write_files
    from support.tokenizers import tiny_tokenizer, tokenizer_file

    from ms4_train.weights import save_model

    write_files(folder, rows=14)
    config, vision = tiny_config(vocab_size=tiny_tokenizer(TINY_RANKS).vocab_size), tiny_vision()
    seeing = folder / "seeing"
    model = tiny_multimodal(config, vision)
    save_model(model.state_dict(), seeing / "base", config=config, vision=vision, tokenizer_file=tokenizer_file(TINY_RANKS))
    mixed_file(seeing, 10)


def rank(config_file: Path, log: Path, stop: int) -> None:
    """One rank of a run, which logs the rows of each step, and asks itself to stop after a step (0: it does not)."""
    config = load_run(config_file, [])
    assert isinstance(config, SftRun)
    log_rows(log.with_name(f"{log.name}.{os.environ.get('RANK', '0')}"))
    if stop:
        stop_after(stop)
    sft.run(config)


if __name__ == "__main__":
    import peft  # noqa: F401 - so that no fork has to import it

    place = Path(sys.argv[1])
    write_inputs(place)
    print(json.dumps(list(one_process(place, sys.argv[2]))))
