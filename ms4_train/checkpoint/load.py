"""Finding the checkpoint to resume from, and reading it: sums first, tensors only after they agree.

``auto`` takes the newest committed checkpoint; a corrupt one is renamed ``*.quarantine`` with a warning and the one before it is taken.
When all are corrupt the run stops: it never starts again from zero unasked.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_load.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ms4_train.checkpoint.folders import committed_steps, quarantine, quarantined, set_aside_later, sweep_temporary
from ms4_train.checkpoint.manifest import MANIFEST_NAME, MAX_JSON_BYTES, verify_folder
from ms4_train.checkpoint.random_state import restore_random_state, seed_everything
from ms4_train.checkpoint.save import STATE_NAME, rank_name
from ms4_train.errors import CheckpointError
from ms4_train.parallel import Mesh, TrainEngine
from ms4_train.untrusted import parse_json, read_bytes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Piece:
    """Rows ``[offset, ...)`` of a parameter, in one file."""

    path: Path
    shape: tuple[int, ...]
    offset: int
    step: int


@dataclass(frozen=True)
class SavedRun:
    """A verified checkpoint. Its tensors stay on the disk until ``restore`` asks for them, one parameter at a time."""

    folder: Path
    step: int
    world_size: int
    state: dict[str, Any]
    _pieces: dict[str, list[_Piece]] = field(repr=False)
    _random: dict[int, dict[str, Any]] = field(repr=False)

    def restore(self, engine: TrainEngine, *, seed: int) -> None:
        """Put weights, optimizer state and random state back. Collective.

        A rank that the saved run did not have gets random state from ``seed``, the step and its number.

        Raises:
            CheckpointError: the checkpoint has other parameters than the run trains.
        """
        trained = {name for name, parameter in engine.model.named_parameters() if parameter.requires_grad}
        if trained != set(self._pieces):
            missing, unexpected = sorted(trained - set(self._pieces)), sorted(set(self._pieces) - trained)
            raise CheckpointError(
                f"it does not hold the parameters of this run: {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}.",
                file=self.folder,
                fix="resume with the model, adapter and train_router setting that it was written with.",
            )
        engine.import_state(self.read_parameter)
        rank = engine.mesh.rank
        if rank in self._random:
            restore_random_state(self._random[rank])
        else:
            seed_everything(seed + self.step, rank)

    def read_parameter(self, name: str) -> Mapping[str, Tensor]:
        """``weight``, ``exp_avg``, ``exp_avg_sq`` as full fp32 tensors, and ``step``.

        Raises:
            CheckpointError: the pieces do not make the full tensor.
        """
        pieces = sorted(self._pieces[name], key=lambda piece: piece.offset)
        tensors = {kind: self._join(kind, name, pieces) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        return {**tensors, "step": torch.tensor(pieces[0].step)}

    def _join(self, kind: str, name: str, pieces: list[_Piece]) -> Tensor:
        parts: list[Tensor] = []
        rows = 0
        for piece in pieces:
            try:
                with safe_open(piece.path, framework="pt") as handle:
                    part = handle.get_tensor(f"{kind}:{name}")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{kind} cannot be read ({error}).", file=piece.path, key=name) from error
            if piece.offset != rows or (piece.shape and part.shape[1:] != piece.shape[1:]):
                raise CheckpointError(f"the pieces of {kind} do not fit together.", file=piece.path, key=name)
            rows += part.shape[0] if part.ndim else 0
            parts.append(part)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if tuple(whole.shape) != pieces[0].shape:
            raise CheckpointError(f"{kind} has shape {tuple(whole.shape)} instead of {pieces[0].shape}.", file=self.folder, key=name)
        return whole


def find_saved_run(root: Path, resume: str, mesh: Mesh) -> SavedRun | None:
    """The checkpoint to go on from, verified; None when the run starts at step 0. Collective.

    Also sweeps what killed processes left under ``root``. Good checkpoints stay as they are, whatever is chosen: ``restart_after`` sets
    later ones aside when the run really begins.

    Args:
        root: the run's own checkpoint folder.
        resume: ``auto``, ``never``, or a checkpoint folder.
        mesh: the main rank searches; all ranks open what it chose.

    Raises:
        CheckpointError: the named folder is not a good checkpoint, or every checkpoint of an ``auto`` run is corrupt.
    """
    report: dict[str, Any] = {"folder": None, "error": None}
    if mesh.is_main:
        try:
            folder = _choose(root, resume)
            report["folder"] = None if folder is None else str(folder)
        except CheckpointError as error:
            if mesh.world_size == 1:
                raise
            report["error"] = str(error)
    chosen = mesh.all_gather_json(report)[0]
    if chosen["error"] is not None:
        raise CheckpointError(chosen["error"])
    return None if chosen["folder"] is None else open_saved_run(Path(chosen["folder"]))


def _choose(root: Path, resume: str) -> Path | None:
    for stale in sweep_temporary(root):
        _LOG.warning("deleted %s, which an interrupted save left behind.", stale)
    if resume == "auto":
        return _newest_good(root)
    if resume == "never":
        return None
    chosen = Path(resume)
    key = "training.resume_from_checkpoint"
    if not chosen.is_dir():
        raise CheckpointError("there is no such checkpoint folder.", file=resume, key=key, fix=_offer(root))
    if not (chosen / MANIFEST_NAME).exists():
        raise CheckpointError(f"this folder is not a checkpoint: it holds no {MANIFEST_NAME}.", file=resume, key=key, fix=_offer(root))
    verify_folder(chosen)
    return chosen


def restart_after(root: Path, step: int) -> None:
    """Set aside the checkpoints that a run going on from ``step`` (0: from the beginning) will not come from.

    Call it on the main rank when nothing can refuse the run any more: after a refusal, the run it belongs to must find them all.
    """
    for aside in set_aside_later(root, step):
        _LOG.warning("this run restarts before an earlier run's checkpoint, which is now %s.", aside)


def _newest_good(root: Path) -> Path | None:
    for step, folder in reversed(committed_steps(root)):
        try:
            verify_folder(folder, step)
            return folder
        except CheckpointError as error:
            moved = quarantine(folder)
            _LOG.warning("%s: %s It is kept as %s, and the checkpoint before it is tried.", error.file, error.message, moved.name)
    if corrupt := quarantined(root):
        raise CheckpointError(
            f"no good checkpoint is left; {len(corrupt)} corrupt one{'s are' if len(corrupt) > 1 else ' is'} kept for inspection.",
            file=root,
            fix="start again with training.resume_from_checkpoint=never, or name a folder that is good.",
        )
    return None


def _offer(root: Path) -> str:
    steps = committed_steps(root)
    return f"name one of {', '.join(str(path) for _, path in steps)}." if steps else "use auto or never."


def open_saved_run(folder: Path) -> SavedRun:
    """Read the JSON files of a verified checkpoint.

    Raises:
        CheckpointError: they do not hold what they should.
    """
    try:
        state = _read_json(folder / STATE_NAME)
        pieces: dict[str, list[_Piece]] = {}
        random: dict[int, dict[str, Any]] = {}
        for rank in range(state["world_size"]):
            part = _read_json(folder / f"{rank_name(rank)}.json")
            random[rank] = part["random"]
            for name, place in part["parameters"].items():
                piece = _Piece(folder / place["file"], tuple(place["shape"]), place["offset"], place["step"])
                pieces.setdefault(name, []).append(piece)
        return SavedRun(folder, state["step"], state["world_size"], state, pieces, random)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint lacks {error}.", file=folder, fix="resume from another checkpoint.") from error


def _read_json(path: Path) -> Any:
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), file=path)
