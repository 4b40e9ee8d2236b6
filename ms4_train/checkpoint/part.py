"""One rank's part of a checkpoint: a copy of its state in host memory, and the files that the copy becomes.

Files of rank r: ``rank-0000r-00n.safetensors`` (1-D tensors; the key ``weight:NAME@START`` holds the values of parameter NAME, flattened,
from START on; ``exp_avg`` and ``exp_avg_sq`` likewise) and ``rank-0000r.json`` (where each piece lies, and the random state).

The copy takes 12 bytes of host memory for each value that this rank writes, until its file is written: while a save is in flight, a run of
N ranks that trains P parameters holds 12 P / N bytes more on each. Files are written from the copy itself, without a second one.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_part.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ms4_train.checkpoint.manifest import FileSum, canonical_json, write_synced
from ms4_train.checkpoint.random_state import capture_random_state
from ms4_train.parallel import StatePiece, TrainEngine
from ms4_train.storage import storage_errors

SHARD_BYTES = 1 << 30
BYTES_PER_VALUE = 12
"""Master weight and two moments, fp32 each."""
_ALIGNMENT = 8


def rank_name(rank: int) -> str:
    """Stem of one rank's files."""
    return f"rank-{rank:05d}"


def piece_key(kind: str, name: str, start: int) -> str:
    """What a piece's tensor is called in its file."""
    return f"{kind}:{name}@{start}"


@dataclass
class HeldPart:
    """Copies of everything that a rank writes; nothing in it changes when training goes on."""

    rank: int
    pieces: list[StatePiece]
    random: dict[str, Any]

    @classmethod
    def copy_of(cls, engine: TrainEngine) -> HeldPart:
        """Copy this rank's pieces to host memory. When this returns, parameters and moments may change. Not collective."""
        pieces = []
        if engine.mesh.device.type == "cuda":
            # Pinned memory and a stream of its own: the copies run at the speed of the bus, one behind the other, and are waited for once.
            stream = torch.cuda.Stream(engine.mesh.device)
            stream.wait_stream(torch.cuda.current_stream(engine.mesh.device))
            with torch.cuda.stream(stream):
                pieces = [_copied(piece) for piece in engine.export_state()]
            stream.synchronize()
        else:
            pieces = [_copied(piece) for piece in engine.export_state()]
        return cls(engine.mesh.rank, pieces, capture_random_state())

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors."""
        return sum((piece.stop - piece.start) * BYTES_PER_VALUE for piece in self.pieces)


def _copied(piece: StatePiece) -> StatePiece:
    return replace(piece, tensors={kind: _on_host(tensor) for kind, tensor in piece.tensors.items()})


def _on_host(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    copy = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)


def write_part(
    folder: Path, part: HeldPart, *, shard_bytes: int = SHARD_BYTES, proceed: Callable[[int], object] | None = None
) -> dict[str, FileSum]:
    """Write a rank's files and flush them; returns their sums. ``part`` is emptied, file by file, so that its memory is free again.

    Args:
        folder: of the checkpoint; must exist.
        part: what is written.
        shard_bytes: a file is closed when its tensors reach this size; a piece is never split.
        proceed: as in ``write_synced``.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    sums: dict[str, FileSum] = {}
    places: list[dict[str, Any]] = []
    while part.pieces:
        pending: list[StatePiece] = []
        left = part.tensor_bytes
        while part.pieces and sum(piece.stop - piece.start for piece in pending) * BYTES_PER_VALUE < shard_bytes:
            pending.append(part.pieces.pop(0))
        name = f"{rank_name(part.rank)}-{len(sums):03d}.safetensors"
        with storage_errors(folder, left):
            sums[name] = write_synced(folder / name, *_safetensors_parts(pending), proceed=proceed)
        places += [_place(piece, name) for piece in pending]
    name = f"{rank_name(part.rank)}.json"
    content = canonical_json({"rank": part.rank, "pieces": places, "random": part.random})
    with storage_errors(folder, len(content)):
        sums[name] = write_synced(folder / name, content, proceed=proceed)
    return sums


def _place(piece: StatePiece, file: str) -> dict[str, Any]:
    return {
        "name": piece.name,
        "shape": list(piece.full_shape),
        "start": piece.start,
        "length": piece.stop - piece.start,
        "file": file,
        "step": piece.step,
    }


def _safetensors_parts(pieces: list[StatePiece]) -> list[bytes | memoryview]:
    """A safetensors file as its header and views of the tensors, in the order of the file."""
    header: dict[str, Any] = {}
    tensors: list[memoryview] = []
    offset = 0
    for piece in pieces:
        for kind, tensor in piece.tensors.items():
            size = tensor.numel() * tensor.element_size()
            header[piece_key(kind, piece.name, piece.start)] = {
                "dtype": "F32",
                "shape": [tensor.numel()],
                "data_offsets": [offset, offset + size],
            }
            offset += size
            tensors.append(tensor.numpy().data.cast("B"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *tensors]
