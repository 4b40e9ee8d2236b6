"""The quickstart: from nothing to a two-mode leaderboard on a CPU, through the same programs that train and evaluate the real model.

Reads top to bottom: tokenizer, fresh model, rows, full fine-tuning on one kind of problem, evaluation, LoRA on a second kind, evaluation
of that, leaderboard. Each step says which ``ms4`` command does the same, and is left out when an interrupted run already finished it.
On several ranks (``--nproc 2``) training spreads the experts over processes; evaluation stays in one.
Exercise it: ``make quickstart``, or ``python -m ms4_recipes.quickstart --output runs/other``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ms4_recipes.steps import CONFIGS, Steps, shown, training_config
from ms4_train.config import load_run
from ms4_train.config.evaluation import EvalRun
from ms4_train.errors import ConfigError, MS4Error, ParallelError, TrainingError
from ms4_train.storage import atomic_write_text, storage_errors

MODEL = CONFIGS / "models" / "tiny.yaml"
FULL = CONFIGS / "train" / "tiny_full.yaml"
LORA = CONFIGS / "train" / "tiny_lora.yaml"
EVALUATION = CONFIGS / "eval" / "arithmetic.yaml"
FINISHED = "quickstart-finished.json"  # a name of our own: the folder that holds it is replaced


@dataclass(frozen=True)
class Scale:
    """How much work the quickstart does; tests do less."""

    tokenizer_ranks: int = 512
    digit_rows: int = 22_000
    modulus7_rows: int = 6_000
    train_overrides: tuple[str, ...] = ()
    evaluation_overrides: tuple[str, ...] = ()


@dataclass
class Quickstart(Steps):
    """One run of the quickstart: where its files lie, how many ranks train, what it prints to, and the wall seconds of each step."""

    output: Path
    scale: Scale = Scale()
    nproc: int = 1
    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Path:
        """The derived tokenizer file."""
        return self.output / "tekken.json"


def run(output: Path, *, scale: Scale = Scale(), nproc: int = 1, console: Console | None = None) -> list[Claim]:
    """Do all steps under ``output`` and return the claims with what was measured.

    A finished run under ``output`` is replaced; an interrupted one goes on where it stopped.

    Args:
        output: folder for everything that is made.
        scale: how much work it is.
        nproc: ranks that train; each holds its share of the experts, and a step has a row of each.
        console: to print to; default: standard output.

    Raises:
        MS4Error: whatever a step refuses.
    """
    quickstart = Quickstart(output, scale, nproc, console or Console())
    if (output / FINISHED).exists():
        shutil.rmtree(output)
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)

    make_base(quickstart)
    write_rows(quickstart)
    digits, modulus7 = (output / f"{kind}.jsonl" for kind in ("digits", "modulus7"))
    full = train(quickstart, "full fine-tuning", FULL, [f"model.path={output / 'base'}", f"data.train.0.path={digits}"])
    before = evaluate(quickstart, "evaluation before LoRA", "full", [f"model.path={full}"])
    rows = [f"data.train.0.path={modulus7}", f"data.train.1.path={digits}"]
    adapter = train(quickstart, "LoRA", LORA, [f"model.path={full}", *rows])
    after = evaluate(quickstart, "evaluation after LoRA", "lora", [f"model.path={full}", f"model.adapter={adapter}"])
    publish(quickstart)

    claims = measure(before, after)
    report(quickstart, claims)
    atomic_write_text(output / FINISHED, json.dumps({"seconds": quickstart.seconds}, indent=2) + "\n")
    return claims


def make_base(quickstart: Quickstart) -> None:
    """A tiny tokenizer and a model of the real architecture with random weights."""
    from ms4_train.chat import derive_tokenizer
    from ms4_train.weights import init_checkpoint

    base, tokenizer, ranks = quickstart.output / "base", quickstart.tokenizer, quickstart.scale.tokenizer_ranks
    with quickstart.step("tokenizer", f"ms4 model tokenizer {tokenizer} --ranks {ranks}"):
        if not tokenizer.exists():
            derive_tokenizer(tokenizer, num_ranks=ranks)
    with quickstart.step("fresh model", f"ms4 model init {shown(MODEL)} {base} --tokenizer {tokenizer}"):
        if not base.exists():
            init_checkpoint(MODEL, base, seed=0, tokenizer_file=tokenizer)


def write_rows(quickstart: Quickstart) -> None:
    """Training rows of both kinds; the held-out problems are drawn by the evaluation itself and share no chain with them."""
    from ms4_evals.tasks.arithmetic import write_training_rows

    for kind, count in (("digits", quickstart.scale.digit_rows), ("modulus7", quickstart.scale.modulus7_rows)):
        path = quickstart.output / f"{kind}.jsonl"
        with quickstart.step(f"rows of {kind}", f"ms4 data arithmetic {path} --kind {kind} --rows {count} --seed 1"):
            if not path.exists():
                write_training_rows(kind, count, 1, path)


def train(quickstart: Quickstart, name: str, file: Path, overrides: Sequence[str]) -> Path:
    """Run a training configuration; its own run state takes an interrupted one further."""
    from ms4_recipes import sft

    folder = quickstart.output / file.stem
    overrides = [f"output_dir={folder}", *overrides, *quickstart.scale.train_overrides]
    ranks = quickstart.nproc
    if ranks > 1:
        # Every step has a row of each rank, so as many steps are as many times the epochs.
        epochs = training_config(file, overrides).training.num_train_epochs * ranks
        overrides += [f"training.num_train_epochs={epochs:g}", f"parallel.expert_parallel_size={ranks}"]
    command = ["train", str(file), *overrides, *([f"--nproc={ranks}"] if ranks > 1 else [])]
    with quickstart.step(name, " ".join(["ms4", *command]).replace(str(file), shown(file))):
        config = training_config(file, overrides)
        finished = folder / ("model" if config.adapter is None else "adapter")
        if not finished.exists() and ranks > 1:
            _train_on_ranks(command)
        return finished if finished.exists() else sft.run(config)
    raise AssertionError("unreachable")


def _train_on_ranks(command: Sequence[str]) -> None:
    """Run ``ms4`` as a user does; ranks are processes of their own.

    Raises:
        TrainingError: it did not end well; what was wrong is on the screen.
    """
    code = subprocess.run([sys.executable, "-m", "ms4_train.cli", *command], check=False).returncode
    if code != 0:
        raise TrainingError(f"training on several ranks ended with exit code {code}.", fix="see its message above.")


def evaluate(quickstart: Quickstart, name: str, label: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate one model on the held-out problems of both kinds in both modes; the store takes an interrupted one further."""
    from ms4_recipes import evaluate as program

    overrides = [f"store={quickstart.output / 'results.sqlite'}", f"label={label}", *overrides, *quickstart.scale.evaluation_overrides]
    with quickstart.step(name, f"ms4 eval run {shown(EVALUATION)} {' '.join(overrides)}"):
        config = load_run(EVALUATION, list(overrides))
        if not isinstance(config, EvalRun):
            raise ConfigError("is not an evaluation configuration.", file=EVALUATION, key="recipe")
        return json.loads(program.run(config).read_text(encoding="utf-8"))
    raise AssertionError("unreachable")


def publish(quickstart: Quickstart) -> None:
    """Leaderboard as a table, a page and a plot."""
    from ms4_evals.leaderboard.collect import collect_boards
    from ms4_evals.leaderboard.publish import publish as write
    from ms4_evals.leaderboard.table import board_table

    store, folder = quickstart.output / "results.sqlite", quickstart.output / "leaderboard"
    with quickstart.step("leaderboard", f"ms4 leaderboard build {store} --out {folder}"):
        boards = collect_boards([store])
        for board in boards:
            quickstart.console.print(board_table(board))
        written = write(boards, folder)
        for path in (written.page, written.plot, written.values):
            quickstart.console.print(str(path), markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Claim:
    """What the quickstart promises, what was measured, and whether it holds."""

    text: str
    measured: str
    holds: bool


def measure(before: dict[str, Any], after: dict[str, Any]) -> list[Claim]:
    """Hold the two reports against what the README promises of the quickstart."""
    digits, second_before, second_after = _task(before, "digits"), _task(before, "modulus7"), _task(after, "modulus7")
    high, none = _mode(digits, "high"), _mode(digits, "none")
    gap = digits["high_minus_none"]
    score, chars = 100 * high["score"]["value"], [mode["lengths"]["total_chars"]["all"]["mean"] for mode in (high, none)]
    lift = 100 * (_mode(second_after, "high")["score"]["value"] - _mode(second_before, "high")["score"]["value"])
    return [
        Claim("held-out digits in mode high: at least 90 %", f"{score:.1f} %", score >= 90),
        Claim(
            "high above none by at least 40 points, interval above zero",
            f"{100 * gap['value']:.1f} points, {100 * gap['low']:.1f} to {100 * gap['high']:.1f}",
            gap["value"] >= 0.4 and gap["low"] > 0,
        ),
        Claim("visibly longer output in high", f"{chars[0]:.0f} against {chars[1]:.0f} characters", chars[0] > 2 * chars[1]),
        Claim("LoRA lifts modulus7 in mode high by at least 30 points", f"{lift:+.1f} points", lift >= 30),
    ]


def report(quickstart: Quickstart, claims: Sequence[Claim]) -> None:
    """Print where the time went and whether the claims hold."""
    table = Table("promise", "measured", "", title="what was promised", title_justify="left")
    for claim in claims:
        table.add_row(claim.text, claim.measured, "holds" if claim.holds else "[red]does not hold")
    quickstart.console.print(quickstart.times(), table)


def _task(report: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(task for task in report["tasks"] if kind in task["task"])


def _mode(task: dict[str, Any], name: str) -> dict[str, Any]:
    return next(mode for mode in task["modes"] if mode["mode"] == name)


def _check_ranks(nproc: int) -> None:
    from ms4_train.weights.init import read_model_file

    experts = read_model_file(MODEL).n_routed_experts
    if nproc < 1 or experts % nproc:
        choices = ", ".join(str(ranks) for ranks in range(1, experts + 1) if experts % ranks == 0)
        raise ParallelError(f"{nproc} ranks cannot share {experts} experts evenly.", key="--nproc", fix=f"use one of {choices}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 when every promise holds, 1 when one does not, 2 for a user's error."""
    parser = argparse.ArgumentParser(description="From nothing to a two-mode leaderboard, in minutes on a CPU.")
    parser.add_argument("--output", type=Path, help="folder for everything that is made; default: runs/quickstart")
    parser.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="ranks that train, each with its share of the experts; default: 1"
    )
    chosen = parser.parse_args(arguments)
    nproc: int = chosen.nproc
    output: Path = chosen.output or Path("runs/quickstart" if nproc == 1 else f"runs/quickstart-{nproc}-ranks")
    # Two threads would be half as fast again on an idle machine and four times slower on a busy one; and one gives everybody the same bits.
    torch.set_num_threads(1)
    try:
        _check_ranks(nproc)
        return 0 if all(claim.holds for claim in run(output, nproc=nproc)) else 1
    except MS4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
