"""A checkpoint of any public layout, opened: every header and scale checked, and its pieces readable one at a time.

Opening reads index, headers and scale scalars (28,224 of them in the NVFP4 release), nothing else. Reads go by position and may come
from any number of threads. Exercise it: ``pytest tests/ms4_train/weights/reading/test_checkpoint.py``.

Not covered: ``SHA256SUMS`` (``checksums``), and putting pieces into a model (``loading``).

Shape suffixes: o rows, i columns, r the rows asked for.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight, QuantisedWeight
from ms4_train.errors import WeightsError
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.layouts.detect import CONFIG_FILES, Family, FamilyChoice, families_present, find_family
from ms4_train.weights.layouts.hf_config import hf_encoding
from ms4_train.weights.layouts.model_config import MAX_CONFIG_BYTES, ScaleChoice, read_model_config
from ms4_train.weights.layouts.native_config import native_encoding
from ms4_train.weights.layouts.pieces import ModelConfig, Piece
from ms4_train.weights.layouts.tables import NVFP4_GROUP, Encoding, Layout, LayoutTable, Place
from ms4_train.weights.layouts.vision_rows import to_hf_rows
from ms4_train.weights.reading.evidence import Evidence, is_extra, weigh_evidence
from ms4_train.weights.reading.header_check import HeaderCheck
from ms4_train.weights.reading.scalars import read_scalars
from ms4_train.weights.reading.stored_files import OpenFiles, StoredTensor, locate

DTYPES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Types of values that are not quantised, as safetensors spells them."""

Rows = tuple[int, int]
_CHECK_BYTES = 1 << 20  # a chunk that stays in the cache between masking and searching
_log = logging.getLogger(__name__)


class Checkpoint:
    """One checkpoint; made by ``open_checkpoint``. Keeps the weight files open while it lives.

    Attributes:
        folder: where it lies.
        family: which of the folder's files it is.
        table: its layout: names, places and the configuration.
        stored: stored name -> file and header entry, of everything in the layout.
        skipped: names of recognised extras that hold no weight.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        table: LayoutTable,
        stored: dict[str, StoredTensor],
        skipped: tuple[str, ...],
        scalars: dict[str, Tensor],
        files: OpenFiles,
    ) -> None:
        self.folder = folder
        self.family: Family = family
        self.table = table
        self.stored = stored
        self.skipped = skipped
        self._scalars = scalars
        self._open = files
        self._pieces = table.pieces()

    @property
    def layout(self) -> Layout:
        """Which public layout it is in."""
        return self.table.layout

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.table.config

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return sorted({stored.file for stored in self.stored.values()})

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors, without extras and headers."""
        return sum(stored.num_bytes for stored in self.stored.values())

    @property
    def dtype(self) -> torch.dtype:
        """The type that most values that are not quantised have."""
        return DTYPES[self.table.dtype]

    def pieces(self) -> dict[str, Piece]:
        """Our name -> piece, in the order of the network."""
        return dict(self._pieces)

    def place(self, piece: Piece) -> Place:
        """Where a piece lies among the stored tensors."""
        return self.table.place(piece)

    def weight_scale(self, piece: Piece) -> Tensor | None:
        """The scale of a piece's matrix (FP8: factor; NVFP4: divisor), 0-d in its stored type; None where it is not quantised."""
        place = self.place(piece)
        return self._scalar(place.weight_scale, place.expert)

    def activation_scale(self, piece: Piece) -> Tensor | None:
        """The scale of the input of a piece's matrix, 0-d in its stored type; None where there is none."""
        place = self.place(piece)
        return self._scalar(place.activation_scale, place.expert)

    def span(self, piece: Piece) -> tuple[Path, int, int] | None:
        """File and bytes [start, stop) of a piece's values or codes; None where their rows lie in another order than the piece's."""
        place = self.place(piece)
        if place.is_permuted:
            return None
        start, stop = self._bytes_of(place, piece, None)
        return self.stored[place.values].file, start, stop

    def read_stored(self, name: str, rows: Rows | None = None) -> Tensor:
        """A stored tensor as it is, in memory of its own; FP8 codes and block scales as uint8.

        Args:
            name: stored name.
            rows: read only [a, b) of dim 0.

        Raises:
            WeightsError: the file cannot be read.
        """
        stored = self.stored[name]
        shape, start = stored.info.shape, stored.info.start
        if rows is not None:
            row_bytes = stored.num_bytes // shape[0]
            shape, start = (rows[1] - rows[0], *shape[1:]), start + rows[0] * row_bytes
        out = torch.empty(shape, dtype=DTYPES.get(stored.info.dtype, torch.uint8))
        self._open.read_into(stored.file, start, out, key=name)
        return out

    def read_piece(self, piece: Piece, rows: Rows | None = None) -> Tensor | QuantisedWeight:
        """A piece's values as they are stored, in memory of its own; rows of vision matrices in Hugging Face's order.

        Args:
            piece: one of ``pieces()``.
            rows: read only [a, b) of its dim 0, to bound the memory.

        Raises:
            WeightsError: the file cannot be read, or a code or block scale is NaN (names file and tensor).
        """
        place = self.place(piece)
        stored = self.stored[place.values]
        if place.is_permuted:
            assert self.config.vision is not None
            a, b = rows if rows is not None else (0, piece.shape[0])
            height = piece.shape[0] // self.config.vision.num_attention_heads  # rows change places within a head
            first, last = a // height, -(-b // height)
            hf_od = to_hf_rows(self.read_stored(place.values, rows=(first * height, last * height)), last - first)
            return hf_od if rows is None else hf_od[a - first * height : b - first * height].clone()
        count = piece.shape[0] if rows is None else rows[1] - rows[0]
        if place.encoding == "plain":
            out = torch.empty((count, *piece.shape[1:]), dtype=DTYPES[stored.info.dtype])
            self._read_rows(place, piece, rows, out)
            return out
        width = piece.shape[1]
        if place.encoding == "fp8":
            codes_ri = torch.empty((count, width), dtype=torch.uint8)
            self.read_codes(piece, codes_ri, rows=rows)
            return Fp8Weight(codes_ri, self._group_scale(piece))
        codes_ri = torch.empty((count, width // 2), dtype=torch.uint8)
        blocks_ri = torch.empty((count, width // NVFP4_GROUP), dtype=torch.uint8)
        self.read_codes(piece, codes_ri, blocks_ri, rows=rows)
        return Nvfp4Weight(codes_ri, blocks_ri, self._group_scale(piece))

    def read_into(self, piece: Piece, out: Tensor, rows: Rows | None = None) -> None:
        """Fill ``out`` with a piece's values, dequantised where they are quantised and cast to its type.

        Args:
            piece: one of ``pieces()``.
            out: contiguous, on the CPU, of the shape of the rows.
            rows: [a, b) of the piece's dim 0; None for all.

        Raises:
            WeightsError: as ``read_piece``.
        """
        place = self.place(piece)
        if place.encoding == "plain" and not place.is_permuted and DTYPES[self.stored[place.values].info.dtype] == out.dtype:
            self._read_rows(place, piece, rows, out)  # no copy in between
            return
        found = self.read_piece(piece, rows)
        out.copy_(found if isinstance(found, Tensor) else found.dequantise(out.dtype))

    def read_codes(self, piece: Piece, codes: Tensor, block_scale: Tensor | None = None, *, rows: Rows | None = None) -> None:
        """Fill ``codes``, and ``block_scale`` of an NVFP4 piece, with a quantised piece's uint8 as stored.

        Raises:
            WeightsError: as ``read_piece``.
        """
        place = self.place(piece)
        self._read_rows(place, piece, rows, codes)
        if place.encoding == "fp8":
            self._refuse_nan(codes, place.values)
        if block_scale is not None:
            assert place.block_scale is not None
            stored = self.stored[place.block_scale]
            first = 0 if rows is None else rows[0]
            self._open.read_into(stored.file, stored.info.start + first * stored.info.shape[1], block_scale, key=place.block_scale)
            self._refuse_nan(block_scale, place.block_scale)

    def read_bytes(self, name: str, start: int, count: int) -> bytes:
        """``count`` bytes of a stored tensor from its byte ``start`` on; for samples.

        Raises:
            WeightsError: the file cannot be read.
        """
        stored = self.stored[name]
        assert 0 <= start <= start + count <= stored.num_bytes, (name, start, count)
        return self._open.read_bytes(stored.file, stored.info.start + start, count, key=name)

    def close(self) -> None:
        """Close the weight files; a later read opens them again."""
        self._open.close()

    def _read_rows(self, place: Place, piece: Piece, rows: Rows | None, out: Tensor) -> None:
        start, stop = self._bytes_of(place, piece, rows)
        assert stop - start == out.numel() * out.element_size(), (piece.name, rows, tuple(out.shape))
        self._open.read_into(self.stored[place.values].file, start, out, key=place.values)

    def _bytes_of(self, place: Place, piece: Piece, rows: Rows | None) -> Rows:
        """Bytes of the file that hold rows [a, b) of a piece: every piece, a stack's expert too, is one run."""
        stored = self.stored[place.values]
        shape, first = stored.info.shape, 0
        if place.expert is not None:
            first = place.expert * shape[1]
            shape = (shape[0] * shape[1], *shape[2:])
        if place.rows is not None:
            first += place.rows[0]
        row_bytes = stored.num_bytes // shape[0]
        a, b = rows if rows is not None else (0, piece.shape[0])
        assert 0 <= a <= b <= piece.shape[0], (piece.name, rows)
        return stored.info.start + (first + a) * row_bytes, stored.info.start + (first + b) * row_bytes

    def _scalar(self, name: str | None, expert: int | None) -> Tensor | None:
        if name is None or name not in self._scalars:
            return None
        found = self._scalars[name].reshape(-1)
        return found[0 if expert is None else expert]

    def _group_scale(self, piece: Piece) -> Tensor:
        scale = self.weight_scale(piece)
        assert scale is not None
        return scale.reshape(1).to(torch.float32, copy=True)

    def _refuse_nan(self, codes: Tensor, name: str) -> None:
        """E4M3 has two NaNs, 0x7f and 0xff; in a weight they are damage."""
        flat = codes.view(-1).numpy()
        for start in range(0, flat.size, _CHECK_BYTES):
            if np.bitwise_and(flat[start : start + _CHECK_BYTES], 0x7F).max() == 0x7F:
                raise WeightsError("holds NaN.", file=self.stored[name].file, key=name, fix="get the file again from its source.")


def open_checkpoint(folder: str | Path, *, family: FamilyChoice = "auto", softmax_scale: ScaleChoice = "auto") -> Checkpoint:
    """Open a checkpoint of any public layout; its headers and scales are checked, none of its weights is read.

    Args:
        folder: holds weights and the configuration that goes with them.
        family: which files to read where the folder holds Hugging Face's and Mistral's; ``auto`` prefers Mistral's, whose FP8 is exact.
        softmax_scale: see ``read_model_config``.

    Raises:
        WeightsError: no weights; a layout or quantisation that is not read, or that the configuration contradicts; a tensor that is
            missing, unexpected, misshapen, of a wrong type or stored twice; a scale that is no positive number. Names file and tensor.
        UntrustedInputError: a file is cut off or damaged.
    """
    folder = Path(folder)
    chosen = find_family(folder, family)
    if family == "auto" and len(families_present(folder)) > 1:
        _say_which(folder, chosen)
    config = read_model_config(folder, family=chosen, softmax_scale=softmax_scale)
    located = locate(folder, chosen)
    evidence = weigh_evidence(located, chosen)
    check_declared(folder, chosen, evidence, located)
    table = table_of(config, chosen, evidence, located)
    check = HeaderCheck.compare(folder, chosen, table, located)
    for mismatch in check.mismatches():
        raise mismatch.error
    skipped = tuple(name for name in located if is_extra(name))
    if skipped:
        _log.info("%s: %d tensors hold no weights and are skipped, such as %s", folder, len(skipped), skipped[0])
    specs = table.tensors()
    stored = {name: located[name] for name in specs if name in located}
    files = OpenFiles()
    scalars = read_scalars(files, [item for name, item in stored.items() if specs[name].kind == "scalar"])
    return Checkpoint(folder, chosen, table, stored, skipped, scalars, files)


@functools.cache  # once per folder: a command opens its model more than once
def _say_which(folder: Path, chosen: Family) -> None:
    _log.warning("%s holds Hugging Face and Mistral-native weights; the %s ones are read, the others ignored.", folder, chosen)


def table_of(config: ModelConfig, family: Family, evidence: Evidence, stored: Mapping[str, StoredTensor]) -> LayoutTable:
    """The table of what was found; its type is the one in which most bytes of values that are not quantised are stored."""
    counts: dict[str, int] = {}
    for item in stored.values():
        if item.info.dtype in DTYPES:
            counts[item.info.dtype] = counts.get(item.info.dtype, 0) + item.num_bytes
    dtype = max(counts, key=lambda key: counts[key], default="BF16")  # scales are too few bytes to count
    return LayoutTable(evidence.layout(family), config, evidence.hf_names, dtype)


def check_declared(folder: Path, family: Family, evidence: Evidence, stored: Mapping[str, StoredTensor]) -> None:
    """Compare what the configuration says of quantisation with what the headers show.

    Raises:
        WeightsError: they contradict each other, or the configuration declares a quantisation that is not read.
    """
    file = folder / CONFIG_FILES[family]
    content: Any = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    declared: Encoding = hf_encoding(content, file=file) if family == "hf" else native_encoding(content, file=file)
    if declared == evidence.encoding:
        return
    words = {"plain": "no quantisation", "fp8": "FP8", "nvfp4": "NVFP4"}
    fix = "use the configuration that belongs to these weights."
    if evidence.witness is None:
        what = f"declares {words[declared]}, but no tensor of the files is quantised."
        raise WeightsError(what, file=file, key="quantization" if family == "native" else "quantization_config", fix=fix)
    stored_as = stored[evidence.witness]
    what = f"is of type {stored_as.info.dtype}, quantised as {words[evidence.encoding]}, but {file.name} declares {words[declared]}."
    raise WeightsError(what, file=stored_as.file, key=evidence.witness, fix=fix)
