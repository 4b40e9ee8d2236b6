"""Where every byte of a layout goes: file names, headers and offsets, from the table alone, before any weight is read.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_plan.py``.

Not covered: the values, and the configuration files beside them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ms4_train.errors import WeightsError
from ms4_train.weights.layouts.detect import INDEX_FILES, SINGLE_FILES, Family
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.layouts.tables import LayoutTable, TensorSpec

ITEM_BYTES = {"U8": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Bytes per value of the types that are written."""
DEFAULT_SHARD_BYTES = 5 << 30
_MAX_FILES = 99_999  # five digits in a name


@dataclass(frozen=True)
class FilePlan:
    """One safetensors file: its header, and where in the file each tensor's bytes [start, stop) lie."""

    name: str
    header: bytes
    spans: dict[str, tuple[int, int]]
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True)
class Extent:
    """Bytes [start, stop) of file number ``file`` of a plan."""

    file: int
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Length."""
        return self.stop - self.start


@dataclass(frozen=True)
class FolderPlan:
    """All weight files of one checkpoint.

    Attributes:
        table: the layout.
        specs: what is stored, in the order of the network; types may differ from the table's.
        files: in order.
    """

    table: LayoutTable
    specs: dict[str, TensorSpec]
    files: tuple[FilePlan, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, headers included."""
        return sum(file.num_bytes for file in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(stop - start for file in self.files for start, stop in file.spans.values())

    @property
    def index_name(self) -> str | None:
        """Name of the index; None where one file holds everything."""
        return INDEX_FILES[_family(self.table)] if len(self.files) > 1 else None

    def index(self) -> dict[str, object]:
        """Content of the index."""
        weight_map = {name: file.name for file in self.files for name in file.spans}
        return {"metadata": {"total_size": self.tensor_bytes}, "weight_map": dict(sorted(weight_map.items()))}

    @functools.cached_property
    def _where(self) -> dict[str, tuple[int, int, int]]:
        return {name: (number, *span) for number, file in enumerate(self.files) for name, span in file.spans.items()}

    def tensor(self, name: str) -> Extent:
        """Where a stored tensor lies."""
        return Extent(*self._where[name])

    def values(self, piece: Piece) -> Extent:
        """Where a piece's values or codes lie: one run of bytes in every layout that is written."""
        place = self.table.place(piece)
        whole, spec = self.tensor(place.values), self.specs[place.values]
        if place.expert is None:
            return whole
        row_bytes = whole.num_bytes // (spec.shape[0] * spec.shape[1])
        first = place.expert * spec.shape[1] + (place.rows[0] if place.rows else 0)
        count = place.rows[1] - place.rows[0] if place.rows else spec.shape[1]
        return Extent(whole.file, whole.start + first * row_bytes, whole.start + (first + count) * row_bytes)

    def scalar(self, name: str, expert: int | None) -> Extent:
        """Where a matrix' entry of a tensor of scales lies."""
        whole, size = self.tensor(name), ITEM_BYTES[self.specs[name].dtype]
        start = whole.start + (expert or 0) * size
        return Extent(whole.file, start, start + size)


def plan_files(
    table: LayoutTable, max_shard_bytes: int = DEFAULT_SHARD_BYTES, *, specs: Mapping[str, TensorSpec] | None = None
) -> FolderPlan:
    """Plan the weight files of a layout.

    Tensors follow the order of the network; a file is begun when the next tensor would not fit, and a matrix' scales stay in its file.

    Args:
        table: the layout, whose configuration is all that is needed.
        max_shard_bytes: tensors of one file together; a larger tensor gets a file of its own.
        specs: what is stored where that differs from ``table.tensors()``.

    Raises:
        WeightsError: ``max_shard_bytes`` is so small that there would be more than 99,999 files.
    """
    chosen = dict(table.tensors() if specs is None else specs)
    groups = list(_groups(chosen, max_shard_bytes))
    if len(groups) > _MAX_FILES:
        raise WeightsError(f"would be {len(groups):,} files.", key="max_shard_bytes", fix="allow larger files.")
    family = _family(table)
    single = SINGLE_FILES[family]
    stem = single.removesuffix(".safetensors")
    count = len(groups)
    names = [single] if count == 1 else [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    metadata = {"format": "pt"} if family == "hf" else None
    files = tuple(_file(name, {tensor: chosen[tensor] for tensor in group}, metadata) for name, group in zip(names, groups, strict=True))
    return FolderPlan(table, chosen, files)


def _family(table: LayoutTable) -> Family:
    return "hf" if table.layout.is_hf else "native"


def spec_bytes(spec: TensorSpec) -> int:
    """Bytes of a stored tensor."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.dtype]


def _groups(specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, spec in specs.items():
        if group and spec.kind != "scalar" and size + spec_bytes(spec) > max_shard_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += spec_bytes(spec)
    if group:
        yield group


def _file(name: str, specs: dict[str, TensorSpec], metadata: dict[str, str] | None) -> FilePlan:
    if not _is_aligned(specs):
        # Readers view the bytes as numbers; a stable sort by size aligns all of them.
        specs = dict(sorted(specs.items(), key=lambda item: -ITEM_BYTES[item[1].dtype]))
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offsets: dict[str, tuple[int, int]] = {}
    position = 0
    for tensor, spec in specs.items():
        stop = position + spec_bytes(spec)
        offsets[tensor] = (position, stop)
        entries[tensor] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data to start at a multiple of 8
    header = len(text).to_bytes(8, "little") + text
    spans = {tensor: (len(header) + start, len(header) + stop) for tensor, (start, stop) in offsets.items()}
    return FilePlan(name, header, spans, len(header) + position)


def _is_aligned(specs: Mapping[str, TensorSpec]) -> bool:
    position = 0
    for spec in specs.values():
        if position % ITEM_BYTES[spec.dtype]:
            return False
        position += spec_bytes(spec)
    return True
