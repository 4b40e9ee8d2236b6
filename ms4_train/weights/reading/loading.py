"""A checkpoint folder of any public layout -> a model with its weights.

The model is built without memory, its parameters are made, and pieces are read into their places, dequantised on the way or kept as
codes and scales; the peak is the model plus a chunk for each reading thread. With expert parallelism each process reads its own experts
only; under ZeRO 3 of everything else its share, by rows (``shares``). Exercise it:
``pytest tests/ms4_train/weights/reading/test_loading.py``, and ``test_loading_*.py`` beside it.

Not covered: shares of weights that stay quantised; their codes are whole on every process, but for the experts of others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ms4_kernels.dispatch import Backend, runs_triton
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4Experts, Mistral4ForCausalLM, TextConfig, VisionConfig
from ms4_train.model.quantised import put_quantised
from ms4_train.weights.layouts.detect import FamilyChoice
from ms4_train.weights.layouts.pieces import Part, Piece
from ms4_train.weights.layouts.tables import NVFP4_GROUP, Encoding
from ms4_train.weights.reading.checkpoint import Checkpoint, Rows, open_checkpoint
from ms4_train.weights.reading.shares import WHOLE, FlatShare, Sharing, put_share, stand_in

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
VisionChoice = Literal["auto", "skip"]
"""Whether tower and projector are read where a checkpoint has them."""

CHUNK_BYTES = 32 << 20
"""What a thread holds beside the model: a chunk as stored, and as it is in the model."""
_MAX_THREADS = 4
_log = logging.getLogger(__name__)


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype,
    softmax_scale: Literal["auto", "plain", "mscale"] = "auto",
    experts_backend: Backend = "auto",
    expert_range: Rows | None = None,
    share: Sharing = WHOLE,
    family: FamilyChoice = "auto",
    dequantise: bool = True,
    vision: VisionChoice = "auto",
    progress: Progress | None = None,
) -> Mistral4ForCausalLM:
    """Read a checkpoint of any public layout into a model on the CPU.

    Args:
        folder: holds weights and their configuration.
        dtype: type of the parameters.
        softmax_scale: see ``read_model_config``.
        experts_backend: implementation of the experts operation.
        expert_range: read only experts [a, b) of each layer; the model then holds those alone, and needs an exchange to run.
        share: read only this process's share of each parameter; the model then holds stand-ins, with the shares beside them (``shares``).
            Weights that stay quantised are read whole.
        family: which files to read where the folder holds Hugging Face's and Mistral's.
        dequantise: False keeps FP8 and NVFP4 weights as codes and scales, frozen; they are dequantised where they are used.
        vision: ``skip`` leaves tower and projector out, for what never sees an image; one warning counts their tensors.
        progress: told how far the reading is.

    Returns:
        A ``Mistral3ForConditionalGeneration`` where vision is read, else the text network alone.

    Raises:
        ConfigError: the experts' implementation cannot run on this machine.
        WeightsError: the configuration or a tensor is missing, unexpected, misshapen or unreadable; a scale or code is not a number.
        UntrustedInputError: a file is cut off or damaged.
    """
    _check_backend(experts_backend)
    checkpoint = open_checkpoint(folder, family=family, softmax_scale=softmax_scale)
    config = checkpoint.config.text
    if expert_range is not None:
        assert 0 <= expert_range[0] < expert_range[1] <= config.n_routed_experts, expert_range
    if vision == "skip":
        _warn_of_vision(checkpoint)
    model = empty_model(config, experts_backend, vision=checkpoint.config.vision if vision == "auto" else None)
    fill = _Fill(checkpoint, model, dtype, expert_range, share, keep_quantised=not dequantise)
    fill.read(progress)
    fill.put()
    if expert_range is not None:
        for module in model.modules():
            if isinstance(module, Mistral4Experts):
                set_first_expert(module, expert_range[0])
    checkpoint.close()
    return model


def _check_backend(backend: Backend) -> None:
    if backend == "triton" and not (torch.cuda.is_available() and runs_triton(torch.device("cuda"))):
        missing = "the triton package is missing" if torch.cuda.is_available() else "torch sees no GPU here"
        raise ConfigError(f"is triton, but {missing}.", key="model.experts_backend", fix="use auto, which picks what runs.")


@dataclass(frozen=True)
class _Target:
    """Where a piece goes: a parameter, an expert's index in it, and the first of its rows there. ``group`` counts scales in a row."""

    parameter: str
    index: int | None = None
    first_row: int = 0
    group: int = 0


@dataclass(frozen=True)
class _Kept:
    """Memory for a weight that stays quantised."""

    codes: Tensor
    scale: Tensor
    block_scale: Tensor | None


class _Fill:
    """The memory of a model and the reading into it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Mistral4ForCausalLM,
        dtype: torch.dtype,
        expert_range: Rows | None,
        sharing: Sharing,
        *,
        keep_quantised: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.dtype = dtype
        self.is_shared = sharing != WHOLE
        self.first, self.stop = expert_range or (0, checkpoint.config.text.n_routed_experts)
        self.pieces = [piece for piece in checkpoint.pieces().values() if self._is_mine(piece)]
        # The native layout scaled gate and up apart; Hugging Face's fused them.
        self.gate_up_groups = 1 if checkpoint.layout.is_hf else 2
        encodings: dict[str, Encoding] = {self._target(piece).parameter: checkpoint.place(piece).encoding for piece in self.pieces}
        self.plain: dict[str, FlatShare] = {}
        self.kept: dict[str, _Kept] = {}
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            is_expert = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            if is_expert:
                shape = (self.stop - self.first, *shape[1:])
            if keep_quantised and encodings[name] != "plain":
                self.kept[name] = self._empty_kept(shape, encodings[name], is_pair=name.endswith("gate_up_proj"))
            else:
                self.plain[name] = sharing.empty(shape, dtype, is_expert=is_expert)

    def read(self, progress: Progress | None) -> None:
        """Read every piece into its place, in the order of the disk, in chunks."""
        jobs = [(piece, rows) for piece in sorted(self.pieces, key=self._disk_order) for rows in self._chunks(piece)]
        sizes = [self._stored_bytes(piece, rows) for piece, rows in jobs]
        done, total = 0, sum(sizes)
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for _, size in zip(pool.map(self._read_chunk, jobs), sizes, strict=True):
                    done += size
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def put(self) -> None:
        """Give the memory to the model."""
        for name, held in self.plain.items():
            if self.is_shared:
                put_share(put_parameter(self.model, name, stand_in(held.shape, self.dtype)), held)
            else:
                put_parameter(self.model, name, held.values.view(held.shape))
        for name, kept in self.kept.items():
            if kept.block_scale is None:
                put_quantised(self.model, name, Fp8Weight(kept.codes, kept.scale), self.dtype)
            else:
                put_quantised(self.model, name, Nvfp4Weight(kept.codes, kept.block_scale, kept.scale), self.dtype)

    def _is_mine(self, piece: Piece) -> bool:
        if piece.part is Part.VISION:
            return isinstance(self.model, Mistral3ForConditionalGeneration)
        return piece.expert is None or self.first <= piece.expert < self.stop

    def _target(self, piece: Piece) -> _Target:
        if piece.expert is None:
            return _Target(piece.name)
        stem = piece.name.partition(".experts.")[0] + ".experts."
        index = piece.expert - self.first
        if piece.matrix == "down_proj":
            return _Target(f"{stem}down_proj", index)
        is_up = piece.matrix == "up_proj"
        return _Target(f"{stem}gate_up_proj", index, piece.shape[0] if is_up else 0, self.gate_up_groups - 1 if is_up else 0)

    def _empty_kept(self, shape: tuple[int, ...], encoding: Encoding, *, is_pair: bool) -> _Kept:
        groups = self.gate_up_groups if is_pair else 1
        scale = torch.empty((*shape[:-2], groups))
        if encoding == "fp8":
            return _Kept(torch.empty(shape, dtype=torch.uint8), scale, None)
        codes = torch.empty((*shape[:-1], shape[-1] // 2), dtype=torch.uint8)
        return _Kept(codes, scale, torch.empty((*shape[:-1], shape[-1] // NVFP4_GROUP), dtype=torch.uint8))

    def _span(self, piece: Piece) -> tuple[Path, int, int]:
        """File and bytes [start, stop) of a piece; a permuted one is a stored tensor of its own."""
        span = self.checkpoint.span(piece)
        if span is not None:
            return span
        stored = self.checkpoint.stored[self.checkpoint.place(piece).values]
        return stored.file, stored.info.start, stored.info.start + stored.num_bytes

    def _disk_order(self, piece: Piece) -> tuple[Path, int]:
        return self._span(piece)[:2]

    def _chunks(self, piece: Piece) -> list[Rows]:
        """The rows to read, in runs: those that lie in the share as a whole, and alone the rows at its ends that are shared out."""
        target = self._target(piece)
        if target.parameter in self.kept:
            return self._runs(piece, 0, piece.shape[0])
        first, width = self._first_value(piece, target), piece.numel // piece.shape[0]
        start, stop = (value - first for value in self.plain[target.parameter].overlap(first, first + piece.numel))
        if start == stop:
            return []
        if self.checkpoint.place(piece).is_permuted:
            # Whole heads are read for any of their rows; such a matrix is small (2 MB in the release).
            return [(start // width, -(-stop // width))]
        inner_start, inner_stop = -(-start // width), stop // width
        if inner_start > inner_stop:  # a part of one row
            return [(inner_stop, inner_start)]
        before = [(inner_start - 1, inner_start)] if start % width else []
        after = [(inner_stop, inner_stop + 1)] if stop % width else []
        return [*before, *self._runs(piece, inner_start, inner_stop), *after]

    def _runs(self, piece: Piece, start: int, stop: int) -> list[Rows]:
        row_bytes = max(1, piece.numel // piece.shape[0] * max(self.dtype.itemsize, self.checkpoint.dtype.itemsize))
        step = max(1, CHUNK_BYTES // row_bytes)
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def _first_value(self, piece: Piece, target: _Target) -> int:
        """Where a piece begins in its flattened parameter."""
        if target.index is None:
            return 0
        stack, width = self.plain[target.parameter].shape, piece.shape[1]
        return (target.index * stack[1] + target.first_row) * width

    def _stored_bytes(self, piece: Piece, rows: Rows) -> int:
        _, start, stop = self._span(piece)
        return (stop - start) * (rows[1] - rows[0]) // piece.shape[0]

    def _read_chunk(self, job: tuple[Piece, Rows]) -> None:
        piece, rows = job
        target = self._target(piece)
        kept = self.kept.get(target.parameter)
        if kept is None:
            self._read_values(piece, self.plain[target.parameter], self._first_value(piece, target), rows)
            return
        blocks = None if kept.block_scale is None else _rows_of(kept.block_scale, target, rows)
        self.checkpoint.read_codes(piece, _rows_of(kept.codes, target, rows), blocks, rows=rows)
        scale = self.checkpoint.weight_scale(piece)
        assert scale is not None
        (kept.scale if target.index is None else kept.scale[target.index])[target.group] = scale

    def _read_values(self, piece: Piece, held: FlatShare, first: int, rows: Rows) -> None:
        width, shape = piece.numel // piece.shape[0], (rows[1] - rows[0], *piece.shape[1:])
        begin, end = first + rows[0] * width, first + rows[1] * width
        start, stop = held.overlap(begin, end)
        if (start, stop) == (begin, end):
            self.checkpoint.read_into(piece, held.view(begin, end).view(shape), rows)
            return
        row = torch.empty(shape, dtype=self.dtype)
        self.checkpoint.read_into(piece, row, rows)
        held.view(start, stop).copy_(row.view(-1)[start - begin : stop - begin])


def _rows_of(tensor: Tensor, target: _Target, rows: Rows) -> Tensor:
    matrix = tensor if target.index is None else tensor[target.index]
    return matrix[target.first_row + rows[0] : target.first_row + rows[1]]


def _warn_of_vision(checkpoint: Checkpoint) -> None:
    count = sum(piece.part is Part.VISION for piece in checkpoint.pieces().values())
    if count:
        _log.warning("%s: %d vision tensors are not used: no image is read. Exports carry them unchanged.", checkpoint.folder, count)


def empty_model(config: TextConfig, experts_backend: Backend = "auto", *, vision: VisionConfig | None = None) -> Mistral4ForCausalLM:
    """A model on the meta device, with ``vision`` the whole one: names and shapes, no memory."""
    with torch.device("meta"):
        if vision is not None:
            return Mistral3ForConditionalGeneration(config, vision, experts_backend=experts_backend)
        return Mistral4ForCausalLM(config, experts_backend=experts_backend)


def expected_shapes(config: TextConfig, vision: VisionConfig | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every full tensor that a checkpoint holds under our names: of the text, then of the vision."""
    return {name: tuple(parameter.shape) for name, parameter in empty_model(config, vision=vision).named_parameters()}


def put_parameter(model: nn.Module, name: str, tensor: Tensor) -> nn.Parameter:
    """Replace a parameter by a new one that holds ``tensor``, and return it."""
    owner, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(tensor)
    setattr(model.get_submodule(owner), leaf, parameter)
    return parameter


def first_expert(experts: nn.Module) -> int:
    """The number, in the whole layer, of the first expert that a partially loaded module holds; 0 for a whole one."""
    return getattr(experts, "first_local_expert", 0)


def set_first_expert(experts: nn.Module, index: int) -> None:
    """Record which expert of the whole layer is the first one held."""
    experts.first_local_expert = index  # type: ignore[assignment]
