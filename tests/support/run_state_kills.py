"""Kills real runs at named moments and at random times, lets them go on until they are done, and says what came of it.

Run it as ``python -m support.run_state_kills FOLDER PLAN...``: a plan is a name of ``plans()``, ``straight`` (which comes first), or
``random COUNT SEED``, with ``@sync`` behind it for saves that are waited for. The results are printed as one JSON object, by plan;
``tests/reliability/test_run_state_kills.py`` looks at them.

The run: MLA and experts, packed and shuffled rows of two sources, more than an epoch, LoRA with dropout. Every life of it is a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.forks import fork, wait
from support.run_state_calls import Call, Watcher, watched
from support.run_state_points import Killer, Point, die, kind_of, pruning_points, saving_points, step_of
from support.run_state_prints import committed, last_logged, names_in, print_of
from support.sft_files import sft_run, write_files

from ms4_recipes import sft
from ms4_train.config.schema import SftRun
from ms4_train.data.loader import TrainLoader
from ms4_train.tracking.jsonl import JsonlTracker

STEPS, EVERY = 12, 4
SAVED = 2 * EVERY
"""The save that most plans die in."""
ROWS = 20
LORA = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"]}
MOST_LIVES = 12
"""More lives than this one run may not need."""
LOADED_FIRST = ("peft", "rich.status", "rich._emoji_codes", "ms4_train.adapters.files", "ms4_recipes.export")
"""Modules that the forks would otherwise import one by one."""


def run_file(folder: Path, output: str, **training: Any) -> SftRun:
    """The run that is killed: three checkpoints, of which two are kept."""
    section = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": EVERY, "save_total_limit": 2, **training}
    return sft_run(folder, output, training=section, adapter=LORA)


@dataclass(frozen=True)
class Life:
    """One life of a run: ``point`` is where it dies, ``begin`` is done in its process first, ``damage`` to the checkpoints before it.

    ``begin`` may give a watcher of the calls on the checkpoints. ``resume`` is the step to go on from, in the place of the newest.
    """

    point: Point | None = None
    begin: Callable[[], Watcher | None] | None = None
    damage: Callable[[Path], None] | None = None
    resume: int | None = None


@dataclass
class History:
    """What the lives of one run came to. ``began`` is how many batches were done before each one; None where it took none."""

    config: SftRun
    codes: list[int] = field(default_factory=list)
    began: list[int | None] = field(default_factory=list)
    committed: list[list[int]] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    left: list[list[str]] = field(default_factory=list)
    batches: list[list[list[Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return Path(self.config.output_dir)

    @property
    def root(self) -> Path:
        """Folder of its checkpoints."""
        return self.output / "checkpoints"

    def live(self, life: Life, delay: float | None = None) -> int:
        """Run one life in a fork, killed after ``delay`` seconds if it is not done by then; returns its exit code."""
        if life.damage is not None:
            life.damage(self.root)
        self.committed.append([step_of(folder) or 0 for folder in committed(self.root)])
        config = self.config
        if life.resume is not None:
            start = {"resume_from_checkpoint": str(self.root / f"step-{life.resume:06d}")}
            config = config.model_copy(update={"training": config.training.model_copy(update=start)})
        rows = self.output.with_name(f"{self.output.name}.rows")
        rows.write_text("")

        def work() -> None:
            record_rows(rows)
            watcher = life.begin() if life.begin is not None else None
            if life.point is not None:
                watcher = Killer(life.point)
            with watched(watcher or Watcher(), self.root):
                sft.run(config)

        process = fork(work)
        if delay is not None:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        self.codes.append(wait(process))
        taken = [json.loads(line) for line in rows.read_text().splitlines(keepends=True) if line.endswith("\n")]
        self.batches.append(taken)
        self.began.append(taken[0][0] - 1 if taken else None)
        self.reached.append(last_logged(self.output))
        self.left.append(names_in(self.root))
        return self.codes[-1]

    def result(self) -> dict[str, Any]:
        """All of it, and the print of the finished run; its folder is deleted."""
        whole = {key: value for key, value in vars(self).items() if key != "config"}
        done = {**whole, **print_of(self.output, STEPS)}
        shutil.rmtree(self.output)
        return done


def record_rows(rows: Path) -> None:
    """Append every batch as the loop takes it: the number of its packed row in the whole run, and the rows in it."""
    take = TrainLoader.next_batch

    def taking(self: TrainLoader) -> Any:
        batch = take(self)
        with rows.open("a") as handle:
            handle.write(json.dumps([self.counts()["packed_rows"], batch.row_ids]) + "\n")
        return batch

    TrainLoader.next_batch = taking  # type: ignore[method-assign]


def until_done(config: SftRun, lives: list[Life]) -> dict[str, Any]:
    """Let a run die as planned, and go on until it is done."""
    history = History(config)
    for life in [*lives, *[Life()] * MOST_LIVES]:
        code = history.live(life)
        if len(history.codes) > len(lives) and code == 0:
            break
    return history.result()


def killed_at_random(folder: Path, count: int, seed: int, longest: float, **training: Any) -> list[dict[str, Any]]:
    """Runs killed at uniformly random times within ``longest`` seconds until ``count`` kills have hit; each goes on until it is done."""
    generator = random.Random(seed)
    results: list[dict[str, Any]] = []
    kills = 0
    while kills < count:
        history = History(run_file(folder, f"random {len(results)}", **training))
        code = -1
        while code != 0 and len(history.codes) < 4 * MOST_LIVES:
            # Once a run has died often enough it may live, or it would need all the luck there is to end.
            mortal = kills < count and len(history.codes) < MOST_LIVES // 2
            code = history.live(Life(), generator.uniform(0.0, longest) if mortal else None)
            kills += code == -signal.SIGKILL
        results.append(history.result())
    return results


def flip_newest(root: Path) -> None:
    """Change one bit of the newest checkpoint's tensors."""
    path = next(committed(root)[-1].glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def after_step(step: int, work: Callable[[], None]) -> None:
    """Do something when the metrics of a step are written, so in the middle of the loop."""
    log = JsonlTracker.log

    def logging(self: JsonlTracker, done: int, metrics: Any) -> None:
        log(self, done, metrics)
        if done == step:
            work()

    JsonlTracker.log = logging  # type: ignore[method-assign]


def die_after_step(step: int) -> Callable[[], None]:
    """A beginning of a life that ends when the metrics of a step are written."""
    return lambda: after_step(step, die)


class _Held(Watcher):
    """Keeps the save of a step from coming to its manifest for as long as the process lives."""

    def before(self, call: Call) -> None:
        if call.kind == "create" and kind_of(call.path) == "manifest" and step_of(call.path) == SAVED:
            time.sleep(60)


def die_with_a_save_in_flight() -> Watcher:
    """Die two steps after a save was begun, while its writer has not come to the manifest."""
    after_step(SAVED + 2, die)
    return _Held()


def plans() -> dict[str, list[Life]]:
    """Name -> the lives that a run loses before it may live on."""
    nine = Life(begin=die_after_step(SAVED + 1))
    sweep, bad, later = (
        Point("unlink", "tensors", "after", SAVED),
        Point("rename", "checkpoint", "after", SAVED, "quarantined folder"),
        Point("rename", "checkpoint", "after", SAVED, "superseded folder"),
    )
    return {
        **{name: [Life(point)] for name, point in saving_points(SAVED).items()},
        **{name: [Life(point)] for name, point in pruning_points(EVERY).items()},
        "in the first save": [Life(saving_points(EVERY)["before the rename"])],
        "in the middle of the loop": [Life(begin=die_after_step(SAVED - 1))],
        "after the last step": [Life(begin=die_after_step(STEPS))],
        "while stale files are swept": [Life(saving_points(SAVED)["after the tensors are flushed"]), Life(sweep)],
        "quarantined by name": [nine, Life(bad, damage=flip_newest)],
        "superseded by name": [nine, Life(later, resume=EVERY)],
        "with a save in flight": [Life(begin=die_with_a_save_in_flight)],
    }


def run_plans(folder: Path, wanted: list[str], known: dict[str, list[Life]]) -> dict[str, Any]:
    """The results of the wanted plans."""
    for module in LOADED_FIRST:
        importlib.import_module(module)
    write_files(folder, rows=ROWS)
    results: dict[str, Any] = {}
    longest = 0.0
    for number, text in enumerate(wanted):
        name, _, mode = text.partition("@")
        # What is damaged or superseded in the ninth step must be the state of the eighth, which on a busy machine may still be in flight.
        training = {"save_async": mode != "sync" and not name.endswith("by name")}
        began = time.monotonic()
        if name.startswith("random"):
            count, seed = map(int, name.split()[1:])
            results[text] = killed_at_random(folder, count, seed, 1.2 * longest, **training)
        else:
            results[text] = until_done(run_file(folder, f"run {number}", **training), [] if name == "straight" else known[name])
            longest = longest or time.monotonic() - began
    return results


if __name__ == "__main__":
    print(json.dumps(run_plans(Path(sys.argv[1]), sys.argv[2:], plans())))
