"""One rank's part of a checkpoint: its state, live or as a copy in host memory, and the files that it becomes.

Files of rank r: ``rank-0000r-00n.safetensors`` (1-D tensors; the key ``weight:NAME@START`` holds the values of parameter NAME, flattened,
from START on; ``exp_avg`` and ``exp_avg_sq`` likewise) and ``rank-0000r.json`` (where each piece lies, and the random state).

A copy (``copy_of``) takes 12 bytes of host memory for each value that this rank writes: a run of N ranks that trains P parameters holds
12 P / N bytes more on each. Copied on the CPU, the memory of a file's pieces is free again when the file is written. Copied from a GPU, it
is page-locked, and torch keeps it for the next copy until the process ends. Live state (``live_in``) is written as it is where it lies in
host memory as fp32, without any copy; from a GPU one file's pieces are brought to the host at a time.
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
from ms4_train.checkpoint.page_locked import PageLocked
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
    """Everything that a rank writes.

    Attributes:
        rank: whose it is.
        pieces: copies, in which nothing changes when training goes on; or views of live state, which must not change before it is written.
        random: states of the random generators.
        device: of live state, for the thread that writes.
    """

    rank: int
    pieces: list[StatePiece]
    random: dict[str, Any]
    device: torch.device | None = None

    @classmethod
    def copy_of(cls, engine: TrainEngine) -> HeldPart:
        """Copy this rank's pieces to host memory. When this returns, parameters and moments may change. Not collective."""
        if engine.mesh.device.type == "cuda":
            # A stream of its own: the copies run at the speed of the bus, one behind the other, and are waited for once.
            stream = torch.cuda.Stream(engine.mesh.device)
            stream.wait_stream(torch.cuda.current_stream(engine.mesh.device))
            live = list(engine.export_state())
            moved = [tensor for piece in live for tensor in piece.tensors.values() if tensor.device.type == "cuda"]
            room = PageLocked(sum(tensor.numel() for tensor in moved))
            with torch.cuda.stream(stream):
                pieces = [_copied(piece, room) for piece in live]
            stream.synchronize()
        else:
            pieces = [_copied(piece) for piece in engine.export_state()]
        return cls(engine.mesh.rank, pieces, capture_random_state())

    @classmethod
    def live_in(cls, engine: TrainEngine) -> HeldPart:
        """This rank's pieces as they lie in the engine. Parameters and moments may change when they are written. Not collective."""
        device = engine.mesh.device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # another thread, on another stream, will read them
        return cls(engine.mesh.rank, list(engine.export_state()), capture_random_state(), device)

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors."""
        return sum((piece.stop - piece.start) * BYTES_PER_VALUE for piece in self.pieces)


def _copied(piece: StatePiece, room: PageLocked | None = None) -> StatePiece:
    if room is None:
        return replace(piece, tensors={kind: _on_host(tensor) for kind, tensor in piece.tensors.items()})
    return replace(piece, tensors={kind: _moved(tensor, room) for kind, tensor in piece.tensors.items()})


def _moved(tensor: Tensor, room: PageLocked) -> Tensor:
    """The copy of a tensor, begun; one that is on the host already needs no page-locked memory."""
    return room.take(tensor.numel()).copy_(tensor.detach(), non_blocking=True) if tensor.device.type == "cuda" else _on_host(tensor)


def _on_host(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)


def write_part(
    folder: Path, part: HeldPart, *, shard_bytes: int = SHARD_BYTES, proceed: Callable[[int], object] | None = None
) -> dict[str, FileSum]:
    """Write a rank's files and flush them; returns their sums. ``part`` is emptied, file by file.

    Args:
        folder: of the checkpoint; must exist.
        part: what is written.
        shard_bytes: a file is closed when its tensors reach this size; a piece is never split.
        proceed: as in ``write_synced``.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    if part.device is not None and part.device.type == "cuda":
        torch.cuda.set_device(part.device)  # of this thread: else its first copy would open another GPU
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


def _can_be_written(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds the bytes of its file."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _safetensors_parts(pieces: list[StatePiece]) -> list[bytes | memoryview]:
    """A safetensors file as its header and views of the tensors, in the order of the file; what is not on the host yet is brought there."""
    header: dict[str, Any] = {}
    tensors: list[memoryview] = []
    elsewhere = sum(tensor.numel() for piece in pieces for tensor in piece.tensors.values() if not _can_be_written(tensor))
    room, offset = torch.empty(elsewhere, dtype=torch.float32), 0  # one block for a file: of many small ones the process would keep some
    for piece in pieces:
        for kind, tensor in piece.tensors.items():
            host = tensor.detach()
            if not _can_be_written(host):
                host, room = room.split([host.numel(), room.numel() - host.numel()])
                host.copy_(tensor.detach())
            size = host.numel() * host.element_size()
            header[piece_key(kind, piece.name, piece.start)] = {
                "dtype": "F32",
                "shape": [host.numel()],
                "data_offsets": [offset, offset + size],
            }
            offset += size
            tensors.append(host.numpy().data.cast("B"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *tensors]
