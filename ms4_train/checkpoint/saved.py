"""A checkpoint that was verified: what it says of its run, and its tensors, by ranges of values.

Tensors stay on the disk until they are asked for. A range is put together from the pieces that ranks wrote, whatever their number; beside
the range itself nothing of a file is held. Exercise it: ``pytest tests/ms4_train/checkpoint/test_saved.py``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ms4_train.checkpoint.manifest import MAX_JSON_BYTES
from ms4_train.checkpoint.part import piece_key, rank_name
from ms4_train.checkpoint.random_state import restore_random_state, seed_everything
from ms4_train.checkpoint.save import STATE_NAME
from ms4_train.errors import CheckpointError
from ms4_train.parallel import TrainEngine, progress
from ms4_train.parallel.parameters import STATE_TENSORS
from ms4_train.untrusted import parse_json, read_bytes

_OTHER = "resume from another checkpoint."


@dataclass(frozen=True)
class SavedPiece:
    """Values ``[start, stop)`` of a flattened parameter, in one file."""

    start: int
    stop: int
    path: Path


@dataclass(frozen=True)
class SavedParameter:
    """One trained parameter. Its pieces are in order, and together hold every value once."""

    shape: tuple[int, ...]
    step: int
    pieces: tuple[SavedPiece, ...]

    def overlapping(self, start: int, stop: int) -> list[SavedPiece]:
        """The pieces that hold values of ``[start, stop)``, in order."""
        first = bisect.bisect_right(self.pieces, start, key=lambda piece: piece.stop)
        last = bisect.bisect_left(self.pieces, stop, key=lambda piece: piece.start)
        return list(self.pieces[first:last])


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint whose files have been verified.

    Attributes:
        folder: of the checkpoint.
        step: optimizer steps done.
        world_size: ranks that wrote it.
        state: what is the same for all ranks: ``identity``, ``loader``, ``tracking``, ``mesh``, ``config``.
        parameters: the trained parameters by name.
    """

    folder: Path
    step: int
    world_size: int
    state: dict[str, Any]
    parameters: Mapping[str, SavedParameter] = field(repr=False)
    _random: Mapping[int, dict[str, Any]] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> SavedRun:
        """Read the JSON files of a verified checkpoint.

        Raises:
            CheckpointError: they do not hold what they should.
        """
        try:
            state = _read_json(folder / STATE_NAME)
            pieces: dict[str, list[tuple[SavedPiece, tuple[int, ...], int]]] = {}
            random: dict[int, dict[str, Any]] = {}
            for rank in range(state["world_size"]):
                part = _read_json(folder / f"{rank_name(rank)}.json")
                random[rank] = part["random"]
                for place in part["pieces"]:
                    piece = SavedPiece(place["start"], place["start"] + place["length"], folder / place["file"])
                    pieces.setdefault(place["name"], []).append((piece, tuple(place["shape"]), place["step"]))
            parameters = {name: _parameter(folder, name, found) for name, found in pieces.items()}
            return cls(folder, state["step"], state["world_size"], state, parameters, random)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint lacks {error}.", file=folder, fix=_OTHER) from error

    def restore(self, engine: TrainEngine, *, seed: int) -> None:
        """Put weights, optimizer state and random state back. Collective.

        A rank that the saved run did not have gets random state from ``seed``, the step and its number.

        Raises:
            CheckpointError: the checkpoint has other parameters than the run trains, or of other shapes; nothing is changed then.
        """
        trained = {name for name, parameter in engine.model.named_parameters() if parameter.requires_grad}
        if trained != set(self.parameters):
            missing, unexpected = sorted(trained - set(self.parameters)), sorted(set(self.parameters) - trained)
            raise self._other_model(
                f"it does not hold the parameters of this run: {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}."
            )
        for piece in engine.export_state():
            if (saved := self.parameters[piece.name].shape) != piece.full_shape:
                raise self._other_model(f"{piece.name} is {list(saved)} in it; this run has {list(piece.full_shape)}.")
        engine.import_state(self.read)
        rank = engine.mesh.rank
        if rank in self._random:
            restore_random_state(self._random[rank])
        else:
            seed_everything(seed + self.step, rank)

    def read(self, name: str, start: int, stop: int, *, kinds: Sequence[str] = STATE_TENSORS) -> Mapping[str, Tensor]:
        """``weight``, ``exp_avg``, ``exp_avg_sq`` of values ``[start, stop)`` of a flattened parameter, 1-D and fp32, and ``step``.

        ``kinds`` says which of the three are read.

        Raises:
            CheckpointError: a file cannot be read.
        """
        progress.at("load")  # all of them may take longer than a rank may be silent
        parameter = self.parameters[name]
        tensors = {kind: torch.empty(stop - start, dtype=torch.float32) for kind in kinds}
        for piece in parameter.overlapping(start, stop):
            begin, end = max(start, piece.start), min(stop, piece.stop)
            try:
                with safe_open(piece.path, framework="pt") as handle:
                    for kind, whole in tensors.items():
                        stored = handle.get_slice(piece_key(kind, name, piece.start))
                        whole[begin - start : end - start] = stored[begin - piece.start : end - piece.start]
            except (SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(f"it cannot be read ({error}).", file=piece.path, key=name, fix=_OTHER) from error
        return {**tensors, "step": torch.tensor(parameter.step)}

    def _other_model(self, what: str) -> CheckpointError:
        fix = "resume with the model, adapter and train_router setting that it was written with."
        return CheckpointError(what, file=self.folder, fix=fix)


def _parameter(folder: Path, name: str, found: list[tuple[SavedPiece, tuple[int, ...], int]]) -> SavedParameter:
    pieces = sorted((piece for piece, _, _ in found), key=lambda piece: piece.start)
    shapes, steps = {shape for _, shape, _ in found}, {step for _, _, step in found}
    ends = [0, *(piece.stop for piece in pieces)]
    fit = len(shapes) == len(steps) == 1 and all(piece.start == end < piece.stop for piece, end in zip(pieces, ends, strict=False))
    shape = shapes.pop()
    if not fit or ends[-1] != math.prod(shape):
        raise CheckpointError("the pieces that ranks wrote do not fit together.", file=folder, key=name, fix=_OTHER)
    return SavedParameter(shape, steps.pop(), tuple(pieces))


def _read_json(path: Path) -> Any:
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), file=path)
