"""Which run a checkpoint belongs to: what may not change when it is resumed, and what may.

The data, the model, the adapter and the seed decide what the saved state means, so a difference there is refused by name. How long to
train, and what is logged and saved meanwhile, may change freely. Other training keys may change with a warning.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_identity.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ms4_train.checkpoint.manifest import canonical_json
from ms4_train.config.schema import DataSection, FieldMap, ImagesSection, SftRun
from ms4_train.errors import CheckpointError

# Length, bookkeeping, and settings that change memory or speed but not what is computed.
FREE_TRAINING_KEYS = frozenset(
    {
        "num_train_epochs",
        "max_steps",
        "gradient_checkpointing",
        "recompute_experts",
        "loss_chunk_tokens",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "eval_max_rows",
        "per_device_eval_batch_size",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_async",
        "on_save_error",
        "resume_from_checkpoint",
    }
)
LENGTH_KEYS = ("num_train_epochs", "max_steps")
"""Free as well, and worth a word: the learning rate follows the length."""
_LOCKED_TRAINING_KEYS = frozenset({"train_router"})
# How images are decoded, not which.
FREE_IMAGE_KEYS = {"workers", "decode_seconds"}
_ABSENT = "absent"
_SHOWN_CHARACTERS = 40


def run_identity(config: SftRun, *, base_fingerprint: str, tokenizer_sha256: str) -> dict[str, Any]:
    """What a checkpoint records about its run: ``locked`` must be equal on resume, ``watched`` is compared with a warning.

    Models and tokenizers are identified by content, not by path, so they may be moved.
    """
    training = config.training.model_dump(mode="json")
    locked = {
        "model": {
            "path": base_fingerprint,
            "tokenizer": tokenizer_sha256,
            "dtype": config.model.dtype,
            "softmax_scale": config.model.softmax_scale,
        },
        "data": _data_identity(config.data),
        "adapter": None if config.adapter is None else config.adapter.model_dump(mode="json"),
        "seed": config.seed,
        "training": {key: training[key] for key in sorted(_LOCKED_TRAINING_KEYS)},
    }
    watched = {key: value for key, value in training.items() if key not in FREE_TRAINING_KEYS | _LOCKED_TRAINING_KEYS}
    return {"locked": locked, "watched": {"training": watched}, "sha256": hashlib.sha256(canonical_json(locked)).hexdigest()}


def _data_identity(section: DataSection) -> dict[str, Any]:
    """The data section. Keys for images are in it where they say something, so that runs from before them go on."""
    data = section.model_dump(mode="json", exclude={"images": FREE_IMAGE_KEYS})
    if data["images"] == ImagesSection().model_dump(mode="json", exclude=FREE_IMAGE_KEYS):
        del data["images"]
    for source in [*data["train"], *data["validation"]]:
        if source["fields"]["images"] == FieldMap().images:
            del source["fields"]["images"]
    return data


def differing_keys(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, saved value, current value) wherever two nested mappings differ; lists are compared item by item.

    A section or list that only one side has is one difference, not one for each of its keys.
    """
    return list(_differences("", saved, current))


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], *, folder: Any) -> list[str]:
    """Refuse to resume another run; returns one line for each training key that changed and is allowed to.

    Raises:
        CheckpointError: names every key that differs, with the saved and the present value.
    """
    if locked := differing_keys(saved.get("locked", {}), current["locked"]):
        raise CheckpointError(
            "the checkpoint belongs to another run; these keys differ: " + "; ".join(map(_change, locked)) + ".",
            file=folder,
            fix="restore them, choose another output_dir, or start again with training.resume_from_checkpoint=never.",
        )
    return [_change(item) for item in differing_keys(saved.get("watched", {}), current["watched"])]


def other_conditions(saved: Mapping[str, Any], config: SftRun, mesh: Mapping[str, int]) -> list[str]:
    """How the same run goes on under other conditions: its ranks, the packed rows of a step, its length. One line each, about "it".

    Args:
        saved: ``state`` of the checkpoint, with ``config`` and ``mesh`` of the run that wrote it.
        config: of this run.
        mesh: ``world_size``, ``expert_parallel_size`` and ``zero_stage`` of this run.
    """
    before, now = saved["config"]["training"], config.training.model_dump(mode="json")
    lines = []
    if moved := differing_keys(saved["mesh"], mesh):
        lines.append(f"it goes on with another mesh: {', '.join(map(_change, moved))}.")
    rows = [
        training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * ranks["world_size"]
        for training, ranks in ((before, saved["mesh"]), (now, mesh))
    ]
    if rows[0] != rows[1]:
        lines.append(
            f"it changes {_change(('packed rows per step', *rows))}: no row is lost or repeated, but epochs are counted as if every step "
            f"had had as many.{_as_before(rows[0], now, mesh)}"
        )
    if length := [_change((f"training.{key}", before[key], now[key])) for key in LENGTH_KEYS if before[key] != now[key]]:
        lines.append(f"it changes {', '.join(length)}: from here on the learning rate follows the new length.")
    return lines


def _as_before(rows: int, training: Mapping[str, Any], mesh: Mapping[str, int]) -> str:
    """How steps would have the rows that they had; nothing where they cannot."""
    steps, left = divmod(rows, training["per_device_train_batch_size"] * mesh["world_size"])
    return "" if left else f" training.gradient_accumulation_steps={steps} keeps the steps as they were."


def _change(item: tuple[str, Any, Any]) -> str:
    key, saved, current = item
    return f"{key} (was {_shown(saved)}, is {_shown(current)})"


def _shown(value: Any) -> str:
    """A value as the run file has it, short: sums and long lists are told apart by their beginning."""
    if isinstance(value, Mapping):
        return "a section"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _differences(place: str, saved: Any, current: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in [*saved, *(key for key in current if key not in saved)]:
            yield from _differences(f"{place}.{key}" if place else str(key), saved.get(key, _ABSENT), current.get(key, _ABSENT))
    elif isinstance(saved, list) and isinstance(current, list):
        for index in range(max(len(saved), len(current))):
            left, right = (items[index] if index < len(items) else _ABSENT for items in (saved, current))
            yield from _differences(f"{place}[{index}]", left, right)
    elif saved != current:
        yield place, saved, current
