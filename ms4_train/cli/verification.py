"""What ``ms4 weights verify`` runs and shows: the prompts, and the verdict in words.

Exercise it: ``ms4 weights verify FOLDER --against SOURCE`` and ``pytest tests/ms4_train/cli/test_verification.py``.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms4_train.errors import WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.weights.compare.verify import LogitsReport
    from ms4_train.weights.reading.checkpoint import Checkpoint

MODES = ("none", "high")
PROMPTS = (
    "What is 7 * 3 + 8, modulo 10?",
    "Name the largest moon of Saturn and say in one sentence what its air is made of.",
    "Schreibe einen Satz über den Regen in Hamburg.",
    "def fibonacci(n):\n    # return the first n numbers\n",
    "Réponds en français : pourquoi le ciel est-il bleu ?",
    "List three primes between 90 and 120.",
    "用一句话解释什么是注意力机制。",
    'Continue: { "name": "Ada", "born":',
)
"""Texts of several kinds, each run in both reasoning modes."""

DEFAULT_PROMPTS = 4
NO_SUMS = "there is no SHA256SUMS: a damaged value would not be noticed"
MAX_PROMPTS_BYTES = 1 << 20


def checked_sums(checkpoint: Checkpoint) -> str:
    """Compare every file that ``SHA256SUMS`` names, and every weight file, with it.

    Returns:
        In words, what was compared and what is there without a sum.

    Raises:
        WeightsError: a file is missing, differs, or is a weight file without a sum.
    """
    from ms4_train.cli.bars import counting_bar
    from ms4_train.weights.checksums import SUMS_FILE, bytes_to_check, check_sums, read_sums
    from ms4_train.weights.layouts.names import and_more

    sums = read_sums(checkpoint.folder)
    if sums is None:
        return NO_SUMS
    names = sorted({*sums, *(file.name for file in checkpoint.files)})
    total, done, lock = bytes_to_check(checkpoint.folder, names), 0, threading.Lock()
    with counting_bar("hashing") as show:

        def progress(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                show(done, total)

        check_sums(checkpoint.folder, names, progress=progress)
    beside = sorted(path.name for path in checkpoint.folder.iterdir() if path.is_file() and path.name not in {*names, SUMS_FILE})
    unproven = f"; it does not name {beside[0]}{and_more(beside)}" if beside else ""
    return f"{len(names):,} files match {SUMS_FILE}{unproven}"


def compare(source: Checkpoint, result: Checkpoint, prompts: str | None, tolerance: float | None) -> tuple[LogitsReport, str]:
    """Run the prompts through both; returns what was found, and what was run, in words.

    Raises:
        MS4Error: as ``sequences_for`` and ``compare_logits``.
    """
    from ms4_train.cli.bars import counting_bar
    from ms4_train.weights.compare.verify import compare_logits

    sequences, what = sequences_for([result.folder, source.folder], prompts, result.config.text.vocab_size)
    with counting_bar("layers") as progress:
        return compare_logits(source, result, sequences, tolerance=tolerance, progress=progress), what


def prompt_texts(wanted: str) -> tuple[str, ...]:
    """The first so many of the built-in texts, or the lines of a file that are not empty.

    Raises:
        WeightsError: a number out of range, or a file without lines.
        UntrustedInputError: the file cannot be read.
    """
    from ms4_train.untrusted import read_text

    if wanted.isdecimal():
        if not 1 <= int(wanted) <= len(PROMPTS):
            raise WeightsError(f"there are {len(PROMPTS)} built-in prompts.", key="--prompts", fix=f"give 1 to {len(PROMPTS)}, or a file.")
        return PROMPTS[: int(wanted)]
    lines = tuple(line for line in read_text(wanted, max_bytes=MAX_PROMPTS_BYTES).splitlines() if line.strip())
    if not lines:
        raise WeightsError("holds no prompt.", file=wanted, fix="write one prompt on each line.")
    return lines


def sequences_for(folders: list[Path], wanted: str | None, vocab_size: int) -> tuple[list[list[int]], str]:
    """Token ids to run, and what they are, in words.

    Args:
        folders: where a tokenizer may lie, the first that has one counts.
        wanted: a number of built-in prompts, or a file; None for a few built-in ones.
        vocab_size: of the model.

    Raises:
        WeightsError, UntrustedInputError: as ``prompt_texts``; or prompts were asked for and there is no tokenizer.
        TokenizerError: the tokenizer is not one of this model.
    """
    from ms4_train.weights.compare.verify import fixed_sequences

    texts = prompt_texts(wanted if wanted is not None else str(DEFAULT_PROMPTS))
    found = [folder for folder in folders if (folder / "tekken.json").exists()]
    if not found:
        if wanted is not None and not wanted.isdecimal():
            raise WeightsError("holds no tekken.json to read prompts with.", file=folders[0], fix="copy the model's into the folder.")
        sequences = fixed_sequences(vocab_size, count=len(texts))
        return sequences, f"{len(sequences)} sequences of fixed ids, for there is no tekken.json"
    from ms4_train.chat import ChatTokenizer

    tokenizer = ChatTokenizer.of_model(found[0])
    tokenizer.check_model(vocab_size)
    sequences = [tokenizer.encode_chat([{"role": "user", "content": text}], reasoning_effort=mode) for text in texts for mode in MODES]
    return sequences, f"{len(texts)} prompts in each reasoning mode"


def report_json(report: LogitsReport) -> dict[str, Any]:
    """What ``compare_logits`` found, as plain values; an error without a finite value is the text ``inf``."""
    from dataclasses import asdict

    def number(value: float) -> float | str:
        return value if math.isfinite(value) else str(value)

    first, cause = report.first_failing, report.cause
    return {
        "passed": report.passed,
        "tolerance": report.expectation.tolerance,
        "reason": report.expectation.reason,
        "sequences": report.num_sequences,
        "tokens": report.num_tokens,
        "max_relative_error": number(report.logits.max_relative_error),
        "mean_kl": number(float(report.logits.kl_t.mean())),
        "max_kl": number(float(report.logits.kl_t.max())),
        "same_first_choice": report.logits.same_first_choice,
        "first_failing": None if first is None else first.name,
        "cause": None if cause is None else {"piece": cause.piece.name, "words": cause.words},
        "blocks": [{"name": stage.name, "error": number(stage.error), "drift": number(stage.drift)} for stage in report.stages],
        "config": [asdict(change) for change in report.config],
        "weights_compared": report.num_weights,
        "weights_differing": [piece.name for piece in report.weights],
        "activation_scales_differing": list(report.activation_scales),
        "experts_reached": report.reached,
        "experts": report.num_experts,
    }


def print_report(report: LogitsReport, what: str, console: Console) -> None:
    """Print the comparison of logits."""
    from ms4_train.weights.layouts.names import and_more

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    kl_t = report.logits.kl_t
    line(f"logits: {what}, {report.num_tokens:,} tokens, fp32, layer by layer")
    line(
        f"logits: largest error {report.logits.max_relative_error:.3g} of the largest logit; KL {float(kl_t.mean()):.3g} nats on average, "
        f"{float(kl_t.max()):.3g} at most; same first choice {report.logits.same_first_choice:.1%}"
    )
    worst = max(report.stages, key=lambda stage: stage.error)
    most = f"the worst is {worst.name} with an error of {worst.error:.3g}" if worst.error else "every one equal to the bit"
    line(f"blocks: {most}; tolerance {report.expectation.tolerance:g} ({report.expectation.reason})")
    line(f"experts: tokens went to {report.reached:,} of {report.num_experts:,}")
    kind = "pieces" if report.expectation.weight_tolerance is not None else "pieces that no token reaches whole"
    line(f"weights: {report.num_weights:,} {kind} compared value by value, {len(report.weights):,} beyond the tolerance")
    for change in report.config:
        line(f"configuration: {change.key} is {change.b!r}, the source has {change.a!r}; it changes what is computed", "red")
    if report.activation_scales:
        names = f"{report.activation_scales[0]}{and_more(report.activation_scales)}"
        line(f"scales: not the source's for the activations of {names}; servers use them", "red")
    for piece in report.weights[:3]:
        line(f"weights: {piece.name} differs by {piece.relative_error:.3g}", "red")
    if report.first_failing is not None:
        line(f"first beyond its tolerance: {report.first_failing.name}, {report.first_failing.error:.3g}", "red")
    if report.cause is not None:
        line(f"its worst weight: {report.cause.piece.name} {report.cause.words}", "red")
