"""Files and configurations of small evaluations: a random model of the real architecture with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.checkpoints import full_section, saved_tiny
from support.models import tiny_config
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_evals.store.results import ResultStore
from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.config.evaluation import EvalRun
from ms4_train.weights import base_fingerprint, load_model

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


def write_ones_adapter(model: Path, folder: Path) -> Path:
    """Write an adapter whose tensors are all ones, so that it changes answers; returns ``folder``."""
    network = load_model(model, dtype=torch.float32)
    section = full_section()
    attach(network, section)
    tensors = {name: torch.ones_like(tensor) for name, tensor in adapter_tensors(network).items()}
    save_adapter(tensors, folder, section=section, config=network.config, base_path=model, base_fingerprint=base_fingerprint(model))
    return folder


def stored_texts(store: Path) -> dict[str, list[tuple[str, str]]]:
    """(thinking, answer) of every graded sample of a store, by label of the run."""
    with ResultStore.read(store) as reader:
        return {
            run.label: [
                ((texts := reader.texts(sample)).thinking, texts.answer)
                for evaluation in reader.evaluations(run.run_id)
                for sample in reader.graded_samples(run.run_id, evaluation)
            ]
            for run in reader.runs()
        }
