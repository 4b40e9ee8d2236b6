"""The memory of who touched what: beside each element of an allocation, the program that read and the one that wrote it in this launch.

Exercise it: ``pytest tests/test_triton_sanitizer.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Clash", "Shadow", "span"]

_CHUNK = 1 << 16  # cells whose contents are counted together; untouched chunks of large allocations are never read


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """How many elements lie between the first and the last one of a tensor, both included, and how many of these belong to it."""
    if not tensor.numel():
        return 0, 0
    axes = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return 1 + sum((size - 1) * stride for size, stride in axes), math.prod(size for size, _ in axes)


@dataclass(frozen=True)
class Clash:
    """Two accesses whose order matters.

    Attributes:
        byte: offset in the shadow.
        other: number of the other program, from 1.
        describe: a sentence with the fields ``where`` and ``other``.
    """

    byte: int
    other: int
    describe: str


class _Marks:
    """One number per cell, 0 at first. The memory of cells that nobody touches is never allocated."""

    def __init__(self, num_cells: int) -> None:
        self.cells = np.zeros(num_cells, dtype=np.int32)
        self._touched = np.zeros(num_cells // _CHUNK + 1, dtype=bool)

    def touch(self, first: int, last: int) -> None:
        self._touched[first // _CHUNK : last // _CHUNK + 1] = True

    def count(self) -> int:
        chunks = np.flatnonzero(self._touched)
        return sum(int(np.count_nonzero(self.cells[chunk * _CHUNK : (chunk + 1) * _CHUNK])) for chunk in chunks)

    def union(self, other: _Marks) -> _Marks:
        result = _Marks(0)
        result.cells, result._touched = np.maximum(self.cells, other.cells), self._touched | other._touched
        return result

    def finer(self, times: int) -> _Marks:
        result = _Marks(self.cells.size * times)
        for chunk in np.flatnonzero(self._touched):
            part = self.cells[chunk * _CHUNK : (chunk + 1) * _CHUNK].repeat(times)
            first = chunk * _CHUNK * times
            result.cells[first : first + part.size] = part
            result.touch(first, first + part.size - 1)
        return result


class Shadow:
    """The accesses of one launch to the bytes [start, stop).

    A cell stands for as many bytes as the smallest access so far. For each, ``reads`` has the first program that read it, ``rereads``
    another one that did, ``writes`` and ``atomics`` the last one that wrote it.
    """

    def __init__(self, start: int, stop: int, item_size: int) -> None:
        self.start = start
        self.stop = stop
        self._cell = item_size
        self._marks: dict[str, _Marks] = {}
        self.extend(stop, item_size)

    def extend(self, stop: int, item_size: int) -> None:
        """Another tensor of the same allocation. Only before the first access."""
        self.stop = max(self.stop, stop)
        self._cell = min(self._cell, item_size)
        while self.start % self._cell:
            self._cell //= 2

    def note(self, offsets: np.ndarray, size: int, program: int, reads: bool, writes: bool, values: np.ndarray | None) -> Clash | None:
        """One access of one program; an atomic operation both ``reads`` and ``writes``.

        Args:
            offsets: bytes from ``start``, int64, in bounds.
            size: bytes of a lane.
            program: its number, from 1.
            reads: whether it loads.
            writes: whether it stores.
            values: what a plain store writes, per lane.

        Returns:
            The first access to clash with, or None.
        """
        if size < self._cell:
            self._marks = {name: marks.finer(self._cell // size) for name, marks in self._marks.items()}
            self._cell = size
        cells = offsets // self._cell
        if size > self._cell:
            cells = cells[:, None] + np.arange(size // self._cell)
        kind = "atomics" if reads and writes else "reads" if reads else "writes"
        clash = self._clash(cells, program, kind)
        if kind == "writes" and values is not None and clash is None:
            clash = self._lanes_clash(cells if cells.ndim == 1 else cells[:, 0], values, program)
        self._set(cells, program, kind)
        return clash

    def unique_bytes(self, tensor: torch.Tensor | None = None) -> tuple[int, int]:
        """Bytes read and bytes written, each once: of all, or of the elements of ``tensor``."""
        counts = []
        for name in ("reads", "writes"):
            found = [self._marks[kind] for kind in (name, "atomics") if kind in self._marks]
            # Rare: the same cells may have been touched by atomics and plainly.
            marks = found[0].union(found[1]) if len(found) == 2 else found[0] if found else None
            counts.append(0 if marks is None else self._count(marks, tensor) * self._cell)
        return counts[0], counts[1]

    def _count(self, marks: _Marks, tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return marks.count()
        num_items, num_distinct = span(tensor)
        if num_items == num_distinct and num_items * tensor.element_size() == self.stop - self.start:
            return marks.count()
        times = tensor.element_size() // self._cell
        axes = [(size, stride * times) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
        sizes, strides = [size for size, _ in axes] + [times], [stride for _, stride in axes] + [1]
        first = (tensor.data_ptr() - self.start) // self._cell
        return int(torch.count_nonzero(torch.from_numpy(marks.cells).as_strided(sizes, strides, first)))

    def _clash(self, cells: np.ndarray, program: int, kind: str) -> Clash | None:
        """Who, of the other programs, did to one of the cells what does not go with this."""
        verb = {"reads": "reads", "writes": "writes", "atomics": "updates"}
        for earlier, marks in self._marks.items():
            if earlier == kind == "atomics" or (kind == "reads" and earlier in ("reads", "rereads")):
                continue
            before = marks.cells[cells]
            foreign = (before != 0) & (before != program)
            if foreign.any():
                place = int(np.flatnonzero(foreign)[0])
                done = {"writes": "wrote", "atomics": "updated"}.get(earlier, "read")
                sentence = f"{verb[kind]} {{where}}, which program {{other}} {done} in the same launch"
                return Clash(int(cells.flat[place]) * self._cell, int(before.flat[place]), sentence)
        return None

    def _lanes_clash(self, cells: np.ndarray, values: np.ndarray, program: int) -> Clash | None:
        """Whether two lanes of one store write different values to one place. Uses the marks of writers as scratch."""
        scratch = self._get("writes").cells
        lanes = np.arange(cells.size, dtype=np.int32)
        scratch[cells] = lanes
        winners = scratch[cells]
        double = winners != lanes
        if double.any():
            bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
            different = double & (bits != bits[winners])
            if different.any():
                sentence = "writes {where} from two lanes of one store, with different values; the other program is {other} itself"
                return Clash(int(cells[np.flatnonzero(different)[0]]) * self._cell, program, sentence)
        return None

    def _set(self, cells: np.ndarray, program: int, kind: str) -> None:
        marks = self._get(kind)
        first, last = int(cells.min()), int(cells.max())
        marks.touch(first, last)
        if kind != "reads":
            marks.cells[cells] = program
            return
        before = marks.cells[cells]
        if not before.any():
            marks.cells[cells] = program
        elif (before != program).any():
            marks.cells[cells] = np.where(before == 0, program, before)
            again = self._get("rereads")
            again.touch(first, last)
            again.cells[cells[(before != 0) & (before != program)]] = program

    def _get(self, kind: str) -> _Marks:
        if kind not in self._marks:
            self._marks[kind] = _Marks(-(-(self.stop - self.start) // self._cell))
        return self._marks[kind]
