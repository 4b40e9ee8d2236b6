"""Files of a small supervised fine-tuning run: a tokenizer, a model of the real architecture with random weights, two data sets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_train.config.schema import SftRun
from ms4_train.weights import save_model

TINY_RANKS = 260


def write_files(folder: Path, *, rows: int = 90) -> Path:
    """Write ``base/`` and ``a.jsonl``, ``b.jsonl`` into ``folder``; returns it."""
    tokenizer = tiny_tokenizer(TINY_RANKS)
    config = tiny_config(vocab_size=tokenizer.vocab_size)
    save_model(tiny_model(config, seed=1).state_dict(), folder / "base", config=config, tokenizer_file=tokenizer_file(TINY_RANKS))
    write_rows(folder / "a.jsonl", rows, seed=1)
    write_rows(folder / "b.jsonl", rows // 2, seed=2)
    return folder


def write_rows(path: Path, count: int, seed: int) -> None:
    """Additions of different lengths, in both modes."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        numbers = [generator.randrange(10) for _ in range(generator.randrange(2, 6))]
        answer: dict[str, Any] = {"role": "assistant", "content": str(sum(numbers))}
        effort = generator.choice(["none", "high"])
        if effort == "high":
            answer["reasoning_content"] = " ".join(str(sum(numbers[: end + 1])) for end in range(len(numbers)))
        messages = [{"role": "user", "content": "+".join(map(str, numbers))}, answer]
        lines.append(json.dumps({"messages": messages, "reasoning_effort": effort}) + "\n")
    path.write_text("".join(lines))


def sft_run(folder: Path, output: str = "out", **sections: Any) -> SftRun:
    """A run over ``write_files``: packing, two data sets of different weights, fp32; sections are merged into its own."""
    values: dict[str, Any] = {
        "recipe": "sft",
        "output_dir": str(folder / output),
        "seed": 5,
        "model": {"path": str(folder / "base"), "dtype": "float32"},
        "data": {
            "train": [{"path": str(folder / "a.jsonl")}, {"path": str(folder / "b.jsonl"), "weight": 0.6}],
            "max_length": 160,
        },
        "training": {"max_steps": 6, "learning_rate": 2e-3, "weight_decay": 0.05, "save_strategy": "no"},
        "tracking": {"console": False, "peak_flops": 1e9},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return SftRun.model_validate(values)


def metrics(folder: Path, output: str = "out", key: str = "loss") -> dict[int, float]:
    """{step: value} of the lines that have ``key``, the last line aside."""
    lines = [json.loads(line) for line in (folder / output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line and not line.get("summary")}
