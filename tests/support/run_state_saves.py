"""Saves of a small engine by the real writer, and the way back: find, verify, put into an engine that is watched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from support.run_state import exported, small_engine
from torch import nn

from ms4_train.checkpoint import RunStateSaver, find_saved_run
from ms4_train.checkpoint.manifest import Manifest, canonical_json, write_manifest, write_synced
from ms4_train.checkpoint.part import HeldPart, write_part
from ms4_train.parallel import Mesh, StatePiece
from ms4_train.parallel.local import LocalEngine

Bits = dict[str, tuple[dict[str, torch.Tensor], int]]
"""Parameter -> (weight and moments, step), as ``exported`` gives them."""


def saver_of(root: Path, engine: Any, **keys: Any) -> RunStateSaver:
    """The writer of a run that keeps two checkpoints; every parameter gets a file of its own."""
    return RunStateSaver(root, engine, **{"expected_bytes": 0, "keep": 2, "config": {"seed": 1}, "shard_bytes": 1, **keys})


def save(root: Path, engine: Any, step: int, **keys: Any) -> Path:
    """Commit one checkpoint."""
    with saver_of(root, engine, **keys) as saver:
        folder = saver.save(step, {"loader": {"row": step}, "identity": {}, "tracking": {}})
        saver.finish()
    return folder


@functools.cache
def _engine() -> LocalEngine:
    return small_engine(seed=99)


def _spare_engine() -> LocalEngine:
    """An engine that holds nothing of use: it is made once, for making one takes longer than reading a small checkpoint."""
    for piece in _engine().export_state():
        for tensor in piece.tensors.values():  # views of live state
            tensor.fill_(torch.nan)
    return _engine()


class WatchedEngine:
    """An engine full of NaN that counts how often state was put into it."""

    def __init__(self) -> None:
        self.engine: LocalEngine = _spare_engine()
        self.mesh: Mesh = self.engine.mesh
        self.model: nn.Module = self.engine.model
        self.imports = 0

    def import_state(self, read: Callable[..., Any]) -> None:
        self.imports += 1
        self.engine.import_state(read)

    def export_state(self) -> Iterator[StatePiece]:
        return self.engine.export_state()


def resume(root: Path) -> tuple[int, Bits, WatchedEngine]:
    """Go on from a run's folder as a new process does: (step, bits in the engine, the engine).

    Raises:
        CheckpointError: as ``find_saved_run``.
    """
    watched = WatchedEngine()
    saved = find_saved_run(root, "auto", watched.mesh)
    assert saved is not None
    assert watched.imports == 0
    saved.restore(watched, seed=0)  # type: ignore[arg-type]
    return saved.step, exported(watched), watched


def same_bits(left: Bits, right: Bits) -> bool:
    """Whether two exports are equal to the bit."""
    return left.keys() == right.keys() and all(
        left[name][1] == right[name][1] and all(torch.equal(left[name][0][kind], right[name][0][kind]) for kind in left[name][0])
        for name in left
    )


def save_on_two_ranks(root: Path, engine: LocalEngine, step: int) -> Path:
    """A checkpoint as two ranks write it, each half of every parameter, made by one process from the writer's own parts."""
    folder = root / f"step-{step:06d}"
    folder.mkdir(parents=True)
    sums = {}
    for rank in range(2):
        part = HeldPart.copy_of(engine)
        pieces = [_half(piece, rank) for piece in part.pieces]
        sums |= write_part(folder, HeldPart(rank, pieces, part.random), shard_bytes=1 << 30)
    places = {"world_size": 2, "expert_parallel_size": 1, "zero_stage": 1}
    state = {"step": step, "world_size": 2, "mesh": places, "config": {}, "loader": {}, "identity": {}, "tracking": {}}
    sums["state.json"] = write_synced(folder / "state.json", canonical_json(state))
    write_manifest(folder, Manifest(step, sums, places, "0" * 64, {"python": "3"}))
    return folder


def _half(piece: StatePiece, rank: int) -> StatePiece:
    length = piece.stop - piece.start
    cut = length // 2
    begin, end = (0, cut) if rank == 0 else (cut, length)
    tensors = {kind: tensor[begin:end].clone() for kind, tensor in piece.tensors.items()}
    return StatePiece(piece.name, piece.full_shape, piece.start + begin, tensors, piece.step)
