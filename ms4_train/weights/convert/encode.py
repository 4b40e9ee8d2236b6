"""One item of a conversion carried out: its bytes read, turned into the target's encoding in chunks of rows, and written in place.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_encode.py``.

Memory per thread is a few times ``CHUNK_VALUES``, or one matrix of the vision tower where rows change their order.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ms4_kernels.quantised import count_saturated, dequantise_fp8, fit_fp8_scale, fuse_fp8_pair, quantise_fp8
from ms4_kernels.quantised.lookup import look_up_pairs, pays
from ms4_train.errors import WeightsError
from ms4_train.weights.convert.items import Item, source_span
from ms4_train.weights.convert.plan import Extent, FolderPlan
from ms4_train.weights.convert.target import Target
from ms4_train.weights.convert.tensor_file import bytes_of, copy_range, write_at
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.layouts.vision_rows import to_native_rows
from ms4_train.weights.reading.checkpoint import Checkpoint

CHUNK_VALUES = 1 << 19
"""Values converted at a time: few enough for a core's cache."""

_ALL_CODES = torch.arange(256, dtype=torch.uint8)

Wrote = Callable[[int, int, int], None]
"""Told file number, start and stop of each range once it is written; may raise to end the work."""


class Encoder:
    """Carries out items; from any number of threads.

    Args:
        source: what is read.
        target: what is stored.
        plan: where.
        folder: holds the plan's files.
        wrote: told every range that was written.
    """

    def __init__(self, source: Checkpoint, target: Target, plan: FolderPlan, folder: Path, wrote: Wrote) -> None:
        self._source = source
        self._target = target
        self._plan = plan
        self._folder = folder
        self._wrote = wrote
        self._own = threading.local()

    def run(self, item: Item) -> dict[str, int]:
        """Carry out an item; returns piece name -> number of values that were clipped, where there are any.

        Raises:
            WeightsError: the source cannot be read, or holds a value that the target cannot.
            OSError: the target cannot be written.
        """
        with self._opened(item.values[0].file) as descriptor:
            if item.action == "copy":
                self._copy(item, descriptor)
                return {}
            if item.action == "cast":
                self._cast(item, descriptor)
                return {}
            return self._quantise(item, descriptor)

    @contextlib.contextmanager
    def _opened(self, file: int) -> Iterator[int]:
        descriptor = os.open(self._folder / self._plan.files[file].name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, values: Tensor, extent: Extent, offset: int) -> int:
        """Write at ``offset`` within an extent; returns the offset behind it."""
        start = extent.start + offset
        data = bytes_of(values)
        assert start + data.nbytes <= extent.stop, (extent, offset, data.nbytes)
        write_at(descriptor, data, start)
        self._wrote(extent.file, start, start + data.nbytes)
        return offset + data.nbytes

    def _copy(self, item: Item, descriptor: int) -> None:
        name, start, stop = source_span(self._source, item.pieces[0])
        file, extent = self._source.stored[name].file, item.values[0]
        assert stop - start == extent.num_bytes, item
        source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            copy_range(source, start, stop, descriptor, extent.start, wrote=lambda a, b: self._wrote(extent.file, a, b), file=file)
        finally:
            os.close(source)

    def _cast(self, item: Item, descriptor: int) -> None:
        piece, extent = item.pieces[0], item.values[0]
        dtype = self._target.dtype(piece)
        if self._target.table.place(piece).is_permuted or self._source.place(piece).is_permuted:
            values = self._cast_rows(piece, None, dtype)
            if self._target.table.place(piece).is_permuted:
                assert self._source.config.vision is not None
                values = to_native_rows(values, self._source.config.vision.num_attention_heads)
            self._write(descriptor, values.contiguous(), extent, 0)
            return
        offset = 0
        is_fp8 = self._source.place(piece).encoding == "fp8"
        for rows in chunks(piece):
            values = self._dequantised_rows(piece, rows, dtype) if is_fp8 else self._cast_rows(piece, rows, dtype)
            offset = self._write(descriptor, values, extent, offset)

    def _cast_rows(self, piece: Piece, rows: tuple[int, int] | None, dtype: torch.dtype) -> Tensor:
        found = self._source.read_piece(piece, rows)
        if not isinstance(found, Tensor):
            return found.dequantise(dtype)
        cast = found.to(dtype)
        if found.dtype not in (dtype, torch.bfloat16, torch.float16) and _is_finite(found) and not _is_finite(cast):
            raise self._refusal(piece, f"holds a value that {dtype} cannot hold.", "convert to float32.")
        return cast

    def _dequantised_rows(self, piece: Piece, rows: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Rows of an FP8 piece, in memory that the thread uses again and again: fresh pages cost more than the arithmetic."""
        shape = (rows[1] - rows[0], piece.shape[1])
        codes = self._memory("codes", shape, torch.uint8)
        self._source.read_codes(piece, codes, rows=rows)
        scale = self._source.weight_scale(piece)
        assert scale is not None
        if not pays(codes, dtype):
            return dequantise_fp8(codes, scale, dtype)
        out = self._memory("values", shape, dtype)
        look_up_pairs(codes.view(-1), dequantise_fp8(_ALL_CODES, scale, dtype), out.view(-1))
        return out

    def _memory(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """A tensor of this thread, valid until it asks for the same name again."""
        size = shape[0] * shape[1] * dtype.itemsize
        found: Tensor | None = getattr(self._own, name, None)
        if found is None or found.numel() < size:
            found = torch.empty(size, dtype=torch.uint8)
            setattr(self._own, name, found)
        return found[:size].view(dtype).view(shape)

    def _quantise(self, item: Item, descriptor: int) -> dict[str, int]:
        target = self._target
        scales = [self._fitted(piece) if target.is_fitted else target.scales[piece.name].weight for piece in item.pieces]
        clipped = dict.fromkeys((piece.name for piece in item.pieces), 0)
        widest = scales[0].dtype if len(scales) == 1 else torch.promote_types(scales[0].dtype, scales[1].dtype)
        scales = [scale.to(widest) for scale in scales]
        offset = 0
        for rows in chunks(item.pieces[0]):
            parts = [self._codes(piece, scale, rows, clipped) for piece, scale in zip(item.pieces, scales, strict=True)]
            if item.action == "fuse":
                fused, _ = fuse_fp8_pair(parts[0], scales[0], parts[1], scales[1])
                parts = list(fused.chunk(2))
            ends = [self._write(descriptor, part, extent, offset) for part, extent in zip(parts, item.values, strict=True)]
            offset = ends[0]
        if item.scale is not None:
            scale = torch.stack(scales).amax().reshape(1)
            spec = self._plan.specs[self._scale_name(item.pieces[0])]
            assert spec.dtype == "BF16", spec
            with self._opened(item.scale.file) as beside:
                self._write(beside, scale.to(torch.bfloat16), item.scale, 0)
        return {name: count for name, count in clipped.items() if count}

    def _scale_name(self, piece: Piece) -> str:
        name = self._target.table.place(piece).weight_scale
        assert name is not None
        return name

    def _codes(self, piece: Piece, scale: Tensor, rows: tuple[int, int], clipped: dict[str, int]) -> Tensor:
        """FP8 codes of rows of a piece: the source's own where its scale is kept, else made; counts what is clipped."""
        if self._source.place(piece).encoding == "fp8" and not self._target.is_fitted:
            codes = torch.empty((rows[1] - rows[0], piece.shape[1]), dtype=torch.uint8)
            self._source.read_codes(piece, codes, rows=rows)
            return codes
        values = self._finite_rows(piece, rows)
        clipped[piece.name] += count_saturated(values, scale)
        return quantise_fp8(values, scale)

    def _finite_rows(self, piece: Piece, rows: tuple[int, int]) -> Tensor:
        found = self._source.read_piece(piece, rows)
        values = found if isinstance(found, Tensor) else found.dequantise(torch.float32)
        if not _is_finite(values):
            raise self._refusal(piece, "holds a value that is not finite, which FP8 cannot store.", "check the training run.")
        return values

    def _fitted(self, piece: Piece) -> Tensor:
        """The scale that maps the matrix' largest magnitude to 448, 0-d in BF16; a second reading of the matrix."""
        largest = torch.zeros((1, 1), dtype=torch.float64)
        for rows in chunks(piece):
            values = self._finite_rows(piece, rows)
            low, high = values.aminmax()
            largest = torch.maximum(largest, torch.maximum(-low, high).double())
        return fit_fp8_scale(largest).to(torch.bfloat16).reshape(())

    def _refusal(self, piece: Piece, what: str, fix: str) -> WeightsError:
        name = self._source.place(piece).values
        return WeightsError(what, file=self._source.stored[name].file, key=name, fix=fix)


def chunks(piece: Piece) -> Iterator[tuple[int, int]]:
    """Rows [a, b) of a piece, ``CHUNK_VALUES`` values at a time and at least one row."""
    rows = piece.shape[0]
    step = max(1, CHUNK_VALUES // (piece.numel // rows))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _is_finite(values: Tensor) -> bool:
    low, high = values.aminmax()
    return bool(low.isfinite() & high.isfinite())
