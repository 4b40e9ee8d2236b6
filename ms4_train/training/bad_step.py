"""The batches of a step whose loss or gradient is not finite, kept on the disk so that the step can be looked at and repeated.

``OUTPUT/bad-step-000123/`` holds two files of each rank: ``rank-00000.safetensors`` (token ids, targets and images of its micro
batches, random state) and ``rank-00000.json`` (rows, lengths, losses). The weights are those before the step.

    step = read_bad_step(Path("out/bad-step-000123"), rank=0)
    step.restore_random_state()                       # for dropout
    hidden_td = hidden_states(model, step.batches[0], device)

Exercise it: ``pytest tests/ms4_train/training/test_bad_step.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ms4_train.data import PackedBatch
from ms4_train.errors import DataError
from ms4_train.model import ImageBatch
from ms4_train.storage import atomic_write_bytes, atomic_write_text, storage_errors
from ms4_train.untrusted import parse_json, read_bytes

MAX_FILE_BYTES = 8 << 30
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Draws:
    """State of torch's random generators, on the CPU and on this process's GPU. Nothing else draws in a forward pass."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> Draws:
        """The state of this moment; takes some microseconds."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)


@dataclass(frozen=True)
class BadStep:
    """What one rank had in a step.

    Attributes:
        step: counted from 1.
        reason: the error of the run.
        value: the loss or the gradient norm that was not finite.
        seed: of the run.
        batches: its micro batches.
        nll_sums: of each micro batch, the sum of the negative log likelihoods of its trained tokens, an fp32 value.
        draws: the random state before the first micro batch.
    """

    step: int
    reason: str
    value: float
    seed: int
    batches: list[PackedBatch]
    nll_sums: list[float]
    draws: Draws

    def restore_random_state(self) -> None:
        """Let torch draw what it drew in the step."""
        torch.set_rng_state(self.draws.cpu)
        if self.draws.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.draws.cuda)


def folder_of(output: Path, step: int) -> Path:
    """Where the batches of a step lie."""
    return output / f"bad-step-{step:06d}"


def write_bad_step(folder: Path, rank: int, bad: BadStep) -> None:
    """Write one rank's files, each whole or not at all; those of an earlier run of the same step are replaced.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    tensors = {"random.cpu": bad.draws.cpu} | ({} if bad.draws.cuda is None else {"random.cuda": bad.draws.cuda})
    for index, batch in enumerate(bad.batches):
        tensors |= {f"{index}.input_ids": batch.input_ids_t, f"{index}.targets": batch.target_ids_t}
        if batch.images is not None:
            tensors[f"{index}.patches"] = batch.images.patches_pi
    described = {
        "step": bad.step,
        "rank": rank,
        "reason": bad.reason,
        "value": bad.value.hex(),
        "seed": bad.seed,
        "micro_batches": [_described(batch, nll) for batch, nll in zip(bad.batches, bad.nll_sums, strict=True)],
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / f"rank-{rank:05d}.safetensors", save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    atomic_write_text(folder / f"rank-{rank:05d}.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")


def read_bad_step(folder: Path, rank: int) -> BadStep:
    """What ``write_bad_step`` wrote.

    Raises:
        UntrustedInputError: a file is missing or is no JSON.
        DataError: a file is something else.
    """
    stem = folder / f"rank-{rank:05d}"
    try:
        tensors = load(read_bytes(stem.with_suffix(".safetensors"), max_bytes=MAX_FILE_BYTES))
        described = parse_json(read_bytes(stem.with_suffix(".json"), max_bytes=MAX_JSON_BYTES), file=stem.with_suffix(".json"))
        batches = [_batch(tensors, index, fields) for index, fields in enumerate(described["micro_batches"])]
        return BadStep(
            step=int(described["step"]),
            reason=str(described["reason"]),
            value=float.fromhex(described["value"]),
            seed=int(described["seed"]),
            batches=batches,
            nll_sums=[float.fromhex(fields["nll_sum"]) for fields in described["micro_batches"]],
            draws=Draws(tensors["random.cpu"], tensors.get("random.cuda")),
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(
            f"is not the record of a bad step ({error}).", file=stem, fix="name a folder bad-step-... as a run left it."
        ) from error


def rows_of(batches: Sequence[PackedBatch], most: int = 8) -> str:
    """The rows of some batches, for a message."""
    rows = [row for batch in batches for row in batch.row_ids]
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def _described(batch: PackedBatch, nll_sum: float) -> dict[str, Any]:
    return {
        "rows": batch.row_ids,
        "lengths": list(batch.lengths),
        "trained_tokens": batch.num_trained,
        "nll_sum": nll_sum.hex(),
        "loss": f"{nll_sum / max(batch.num_trained, 1):.6g}",  # for readers; exact is the sum
        "image_grids": None if batch.images is None else [list(grid) for grid in batch.images.grids],
    }


def _batch(tensors: dict[str, Tensor], index: int, fields: dict[str, Any]) -> PackedBatch:
    grids = fields["image_grids"]
    images = None if grids is None else ImageBatch(tensors[f"{index}.patches"], tuple((int(rows), int(columns)) for rows, columns in grids))
    return PackedBatch(
        input_ids_t=tensors[f"{index}.input_ids"],
        target_ids_t=tensors[f"{index}.targets"],
        lengths=tuple(map(int, fields["lengths"])),
        row_ids=[str(row) for row in fields["rows"]],
        num_trained=int(fields["trained_tokens"]),
        images=images,
    )
