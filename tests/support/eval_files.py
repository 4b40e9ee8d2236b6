"""Files and configurations of small evaluations: a random model of the real architecture with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.checkpoints import saved_tiny
from support.models import tiny_config
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_train.config.evaluation import EvalRun

RANKS = 260


def write_model(folder: Path) -> Path:
    """Write the tiny model and its tokenizer into ``folder``; returns it."""
    saved_tiny(folder, tiny_config(vocab_size=tiny_tokenizer(RANKS).vocab_size), tokenizer_file=tokenizer_file(RANKS))
    return folder


def eval_run(model_folder: Path, store: Path, **sections: Any) -> EvalRun:
    """A run of 5 + 4 problems with two samples each, in both modes, sampled at temperature 0.7; ``sections`` replace its own."""
    values: dict[str, Any] = {
        "recipe": "eval",
        "store": str(store),
        "label": "tiny",
        "model": {"path": str(model_folder), "dtype": "float32"},
        "tasks": [
            {"task": "arithmetic", "kind": "digits", "problems": 5, "samples": 2},
            {"task": "arithmetic", "kind": "letters", "problems": 4, "samples": 2},
        ],
        "modes": {"none": {"max_tokens": 6}, "high": {"max_tokens": 14}},
        "engine": {"max_batch_size": 5},
        "bootstrap_samples": 200,
    }
    return EvalRun.model_validate(values | sections)
