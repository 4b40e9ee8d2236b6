"""A tiny model learns to see, in minutes on a CPU: text first, then handwritten digits as pictures, through the ordinary programs.

Reads top to bottom: a base trained on text alone, a fresh vision tower before it, LoRA on tower, projector and language, the same rows
with LoRA on the language alone, and the accuracy of both on held-out pictures, asked through the engine in chat messages.
Exercise it: ``make quickstart-vision``, or ``python -m ms4_recipes.quickstart_vision --output runs/other``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ms4_recipes import digit_rows, sft
from ms4_recipes.steps import CONFIGS, Steps, shown, training_config
from ms4_train.errors import MS4Error
from ms4_train.storage import storage_errors

TEXT_MODEL, VISION_MODEL = CONFIGS / "models" / "tiny.yaml", CONFIGS / "models" / "tiny-vision-narrow.yaml"
TEXT_RUN, VISION_RUN = CONFIGS / "train" / "tiny_full.yaml", CONFIGS / "train" / "tiny_lora_vision.yaml"
# A few hundred different questions: nothing is held out, and nothing is worth saving on the way.
TEXT_OVERRIDES = ("data.validation_fraction=0", "training.eval_strategy=no", "training.save_strategy=no")
VISION_OVERRIDES = (*TEXT_OVERRIDES, "training.num_train_epochs=10")


@dataclass(frozen=True)
class Scale:
    """How much work is done; tests do less."""

    text_rows: int = 6000
    train_overrides: tuple[str, ...] = ()
    held_out: int = digit_rows.HELD_OUT


@dataclass
class Lesson(Steps):
    """One run: where its files lie, what it prints to, and the wall seconds of each step."""

    output: Path
    scale: Scale = Scale()
    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)


def run(output: Path, *, scale: Scale = Scale(), console: Console | None = None) -> dict[str, float]:
    """Do all steps under ``output``; returns the held-out accuracy of the model that sees, that does not, and before training.

    What an earlier run finished there is not done again.

    Raises:
        MS4Error: whatever a step refuses.
    """
    lesson = Lesson(output, scale, console or Console())
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    train_pictures, held_out = digit_rows.pictures()
    base = make_base(lesson)
    rows = output / "pictures.jsonl"
    digit_rows.write_rows(rows, [picture.row() for picture in train_pictures])
    sighted = train(lesson, "LoRA on vision, projector and language", base, rows, "all")
    blind = train(lesson, "LoRA on the language alone", base, rows, "language")
    held_out = held_out[: scale.held_out]
    accuracies = {
        "before": accuracy(lesson, "held-out pictures before training", base, None, held_out),
        "language": accuracy(lesson, "held-out pictures, language adapter", base, blind, held_out),
        "all": accuracy(lesson, "held-out pictures, adapter on everything", base, sighted, held_out),
    }
    report(lesson, accuracies, len(held_out))
    return accuracies


def make_base(lesson: Lesson) -> Path:
    """A tiny model that was trained on text about digits, with a vision tower of random weights."""
    from ms4_train.chat import derive_tokenizer
    from ms4_train.weights import init_checkpoint
    from ms4_train.weights.add_vision import add_vision

    fresh, tokenizer, rows = lesson.output / "fresh", lesson.output / "tekken.json", lesson.output / "text.jsonl"
    with lesson.step("fresh text model", f"ms4 model init {shown(TEXT_MODEL)} {fresh} --tokenizer {tokenizer}"):
        if not tokenizer.exists():
            derive_tokenizer(tokenizer, num_ranks=512)
        if not fresh.exists():
            init_checkpoint(TEXT_MODEL, fresh, seed=0, tokenizer_file=tokenizer)
    digit_rows.write_rows(rows, digit_rows.text_rows(lesson.scale.text_rows, seed=1))
    text_model = lesson.output / "text" / "model"
    overrides = [f"output_dir={text_model.parent}", f"model.path={fresh}", f"data.train.0.path={rows}", *TEXT_OVERRIDES]
    overrides += lesson.scale.train_overrides
    with lesson.step("training on text", f"ms4 train {shown(TEXT_RUN)} {' '.join(overrides)}"):
        if not text_model.exists():
            sft.run(training_config(TEXT_RUN, overrides))
    base = lesson.output / "base"
    with lesson.step("vision tower", f"ms4 model add-vision {text_model} {base} --vision {shown(VISION_MODEL)}"):
        if not base.exists():
            add_vision(text_model, base, vision_yaml=VISION_MODEL, seed=0)
    return base


def train(lesson: Lesson, name: str, base: Path, rows: Path, preset: str) -> Path:
    """Train an adapter on the pictures; returns its folder."""
    folder = lesson.output / preset
    overrides = [f"output_dir={folder}", f"model.path={base}", f"data.train.0.path={rows}", f"adapter.preset={preset}", *VISION_OVERRIDES]
    overrides += lesson.scale.train_overrides
    with lesson.step(name, f"ms4 train {shown(VISION_RUN)} {' '.join(overrides)}"):
        if not (folder / "adapter").exists():
            sft.run(training_config(VISION_RUN, overrides))
    return folder / "adapter"


def accuracy(lesson: Lesson, name: str, base: Path, adapter: Path | None, pictures: Sequence[digit_rows.DigitPicture]) -> float:
    """Share of pictures whose digit the model names, greedily, asked through the engine."""
    from ms4_train.adapters import load_adapter
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import Engine, SamplingParams, chat_request, completion_answer
    from ms4_train.weights import base_fingerprint, load_model

    with lesson.step(name, f"# {len(pictures)} chat messages with a picture each, greedy answers"):
        model = load_model(base, dtype=torch.float32)
        if adapter is not None:
            load_adapter(model, adapter, base_fingerprint=base_fingerprint(base))
        tokenizer = ChatTokenizer.of_model(base)
        sampling = SamplingParams(max_tokens=8)
        requests = [
            chat_request(tokenizer, picture.messages, request_id=str(number), reasoning_effort="none", sampling=sampling)
            for number, picture in enumerate(pictures)
        ]
        completions = Engine(model, tokenizer, max_batch_size=64, max_context=128).generate(requests)
        answers = [completion_answer(completion, tokenizer).content for completion in completions]
        return sum(answer == picture.answer for answer, picture in zip(answers, pictures, strict=True)) / len(pictures)
    raise AssertionError("unreachable")


def report(lesson: Lesson, accuracies: dict[str, float], count: int) -> None:
    """Print where the time went, and what was learned."""
    table = Table("adapter", f"accuracy on {count} held-out pictures", title="what was learned (chance is 10 %)", title_justify="left")
    for label, key in (("none: tower of random weights", "before"), ("language", "language"), ("all: vision, projector, language", "all")):
        table.add_row(label, f"{100 * accuracies[key]:.1f} %")
    lesson.console.print(lesson.times(), table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 when the model has learned to see, 1 when not, 2 for a user's error."""
    parser = argparse.ArgumentParser(description="A tiny model learns to see handwritten digits, in minutes on a CPU.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart-vision"), help="folder for everything that is made")
    output: Path = parser.parse_args(arguments).output
    torch.set_num_threads(1)  # as in the other quickstart: the same bits for everybody
    try:
        found = run(output)
        return 0 if found["all"] > 0.8 and found["language"] < found["all"] - 0.1 else 1
    except MS4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
