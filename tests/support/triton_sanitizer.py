"""Watches every byte that an interpreted Triton kernel touches: counts traffic, finds accesses out of bounds and races between programs.

A pointer remembers the argument it came from, and may only reach bytes of that argument's elements; so neither a neighbour in the same
allocation nor another argument hides an overrun. Beside each allocation lies a shadow that holds, per element, which program read and
which wrote it. ``watching`` lists the replacements in the interpreter's builder; ``support.triton_interpreter`` puts them in place.
Exercise it: ``pytest tests/test_triton_sanitizer.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from support.triton_shadow import Shadow, span
from triton.runtime import interpreter

__all__ = ["Launch", "Launches", "MisalignedError", "OutOfBoundsError", "RaceError", "Traffic", "Watch", "watching"]

_NOT_KERNELS = (str(Path(triton.__file__).parent), str(Path(__file__).parent), str(Path(np.__file__).parent))


class OutOfBoundsError(RuntimeError):
    """A kernel accessed memory outside the argument whose pointer it used."""


class MisalignedError(RuntimeError):
    """A kernel accessed an address that is no multiple of the element's size; a GPU faults."""


class RaceError(RuntimeError):
    """The outcome of a launch depends on the order of its programs, or of the lanes of one store."""


@dataclass
class Traffic:
    """Bytes moved by unmasked lanes. Atomics count as a read and a write.

    Attributes:
        read_bytes, written_bytes: with repeats: every load of every program.
        unique_read_bytes, unique_written_bytes: each byte once per launch.
    """

    read_bytes: int = 0
    written_bytes: int = 0
    unique_read_bytes: int = 0
    unique_written_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Launch:
    """One launch.

    Attributes:
        kernel: name of the function.
        grid: programs along each of three axes.
        dot_flops: 2 * M * N * K of each ``tl.dot``, padding included.
        traffic: of the launch; a byte that two arguments share is one unique byte.
        arguments: name of a tensor argument -> its traffic; ``name[i]`` for the parts of a tuple.
    """

    kernel: str
    grid: tuple[int, int, int]
    dot_flops: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    arguments: dict[str, Traffic] = field(default_factory=dict)

    @property
    def programs(self) -> int:
        """How many programs the grid has."""
        return math.prod(self.grid)


class Launches(list[Launch]):
    """The launches of a context, in order."""

    def of(self, kernel: str) -> Launches:
        """Those of the kernels of this name."""
        return Launches(launch for launch in self if launch.kernel == kernel)

    def traffic(self) -> Traffic:
        """The sum; unique bytes are unique within each launch."""
        return sum((launch.traffic for launch in self), Traffic())

    def dot_flops(self) -> int:
        """The sum of the floating-point operations of ``tl.dot``."""
        return sum(launch.dot_flops for launch in self)


@dataclass
class _Argument:
    """A tensor argument: the bytes from its first element to the end of its last."""

    name: str
    tensor: torch.Tensor
    start: int
    num_bytes: int
    covered: np.ndarray | None  # for a view with holes: whether an element is there, one flag per itemsize bytes
    traffic: Traffic


class Watch:
    """Follows one launch. ``program`` is set before each program runs."""

    def __init__(self, launch: Launch, check: bool) -> None:
        self.launch = launch
        self.check = check
        self.program = (0, 0, 0)
        self._arguments: list[_Argument] = []
        self._shadows: list[Shadow] = []

    def add_argument(self, name: str, tensor: torch.Tensor) -> _Argument:
        """Registers a tensor; what it returns is kept on the pointers that come from it, as ``attr["argument"]``."""
        traffic = self.launch.arguments.setdefault(name, Traffic())
        num_items, num_distinct = span(tensor)
        covered = None
        if num_distinct < num_items:
            covered = np.zeros(num_items, dtype=bool)
            torch.from_numpy(covered).as_strided(tensor.shape, tensor.stride()).fill_(True)
        argument = _Argument(name, tensor, tensor.data_ptr(), num_items * tensor.element_size(), covered, traffic)
        self._arguments.append(argument)
        return argument

    def count_dot(self, operations: int) -> None:
        """Notes the floating-point operations of a ``tl.dot``."""
        self.launch.dot_flops += operations

    def begin(self) -> None:
        """Lays shadows beside the arguments, one for all those that overlap. Call it after the last ``add_argument``."""
        for argument in sorted((x for x in self._arguments if x.num_bytes), key=lambda x: x.start):
            stop = argument.start + argument.num_bytes
            if self._shadows and argument.start < self._shadows[-1].stop:
                self._shadows[-1].extend(stop, argument.tensor.element_size())
            else:
                self._shadows.append(Shadow(argument.start, stop, argument.tensor.element_size()))

    def finish(self) -> None:
        """Counts the unique bytes, and lets go of tensors and shadows."""
        total = self.launch.traffic
        for argument in self._arguments:
            total.read_bytes += argument.traffic.read_bytes
            total.written_bytes += argument.traffic.written_bytes
            if argument.num_bytes:
                shadow = self._shadow(argument)
                argument.traffic.unique_read_bytes, argument.traffic.unique_written_bytes = shadow.unique_bytes(argument.tensor)
        for shadow in self._shadows:
            read, written = shadow.unique_bytes()
            total.unique_read_bytes += read
            total.unique_written_bytes += written
        self._arguments, self._shadows = [], []

    def access(self, pointers: Any, mask: Any, *, reads: bool, writes: bool, values: np.ndarray | None = None) -> None:
        """Notes and checks one load, store or atomic operation (one that ``reads`` and ``writes``).

        Args:
            pointers: handle of the addresses.
            mask: handle or array of the lanes that take part; None for all.
            reads: whether it loads.
            writes: whether it stores.
            values: what a plain store writes.
        """
        size = interpreter._get_np_dtype(pointers.get_element_ty()).itemsize
        addresses, shape = pointers.data, pointers.data.shape
        values = None if values is None else np.broadcast_to(values, shape)
        active = np.True_ if mask is None else np.asarray(mask.data, dtype=bool)
        if active.all():
            addresses, values = addresses.reshape(-1), None if values is None else values.reshape(-1)
        else:
            active = np.broadcast_to(active, shape)
            addresses, values = addresses[active], None if values is None else values[active]
        if not addresses.size:
            return
        assert values is None or values.dtype.itemsize == size, f"the interpreter stores the wrong type through {pointers.dtype}"
        argument = pointers.attr.get("argument")
        for owner, lanes in [(argument, slice(None))] if argument is not None else self._owners(addresses, size):
            self._access(owner, addresses[lanes], size, reads, writes, None if values is None else values[lanes])

    def _access(self, argument: _Argument, addresses: np.ndarray, size: int, reads: bool, writes: bool, values: np.ndarray | None) -> None:
        argument.traffic.read_bytes += size * addresses.size * reads
        argument.traffic.written_bytes += size * addresses.size * writes
        offsets = (addresses - np.uint64(argument.start)).view(np.int64)
        inside = self._inside(argument, offsets, size)
        if inside is not None:
            if self.check:
                self._refuse_bounds(argument, offsets[~inside], size, writes)
            offsets, values = offsets[inside], None if values is None else values[inside]
            if not offsets.size:
                return
        if self.check and size > 1 and (addresses & np.uint64(size - 1)).any():
            raise MisalignedError(self._about(f"accesses {size} bytes of {argument.name!r} at an address that is no multiple of {size}"))
        x, y, z = self.program
        number = 1 + (x * self.launch.grid[1] + y) * self.launch.grid[2] + z
        shadow = self._shadow(argument)
        clash = shadow.note(offsets + (argument.start - shadow.start), size, number, reads, writes, values)
        if clash is not None and self.check:
            byte = clash.byte + shadow.start - argument.start
            other = self._named(clash.other)
            where = f"byte {byte} of {argument.name!r} (element {byte // size})"
            raise RaceError(self._about(clash.describe.format(where=where, other=other)))

    def _inside(self, argument: _Argument, offsets: np.ndarray, size: int) -> np.ndarray | None:
        """Which lanes stay within the argument; None if all do."""
        if offsets.min() >= 0 and offsets.max() + size <= argument.num_bytes:
            if argument.covered is None:
                return None
            inside = np.ones(offsets.size, dtype=bool)
        else:
            inside = (offsets >= 0) & (offsets + size <= argument.num_bytes)
        if argument.covered is not None:
            step = argument.tensor.element_size()
            # An access wider or narrower than the elements lies in them if its first and last byte do: rows have whole elements.
            for byte in (0, size - 1) if size > step else (0,):
                inside[inside] &= argument.covered[(offsets[inside] + byte) // step]
        return None if inside.all() else inside

    def _owners(self, addresses: np.ndarray, size: int) -> Iterator[tuple[_Argument, np.ndarray]]:
        """For pointers of unknown origin: the arguments they lie in, each with its lanes."""
        left = np.ones(addresses.size, dtype=bool)
        for argument in self._arguments:
            offsets = (addresses - np.uint64(argument.start)).view(np.int64)
            mine = left & (offsets >= 0) & (offsets + size <= argument.num_bytes)
            if mine.any():
                left &= ~mine
                yield argument, mine
        if left.any() and self.check:
            raise OutOfBoundsError(self._about(f"accesses address {addresses[left][0]:#x}, which is in none of its arguments"))

    def _refuse_bounds(self, argument: _Argument, outside: np.ndarray, size: int, writes: bool) -> None:
        verb, offset = "writes" if writes else "reads", int(outside[0])
        shape = f"shape {tuple(argument.tensor.shape)}, strides {argument.tensor.stride()}"
        text = f"{verb} {outside.size} elements outside {argument.name!r} ({shape}), the first at byte {offset} (element {offset // size})"
        raise OutOfBoundsError(self._about(f"{text}; the argument has {argument.num_bytes} bytes"))

    def _shadow(self, argument: _Argument) -> Shadow:
        return next(shadow for shadow in self._shadows if shadow.start <= argument.start < shadow.stop)

    def _named(self, number: int) -> tuple[int, int, int]:
        _, y, z = self.launch.grid
        return (number - 1) // (y * z), (number - 1) // z % y, (number - 1) % z

    def _about(self, what: str) -> str:
        return f"kernel {self.launch.kernel}, program {self.program}, {_source_line()}: {what}"


def watching(watch: Callable[[], Watch]) -> Iterator[tuple[Any, str, Any]]:
    """The replacements: (class, attribute, function).

    Args:
        watch: gives the watch of the launch under way.
    """
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    exchange, combine = builder.create_atomic_cas, builder.create_atomic_rmw

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        watch().access(ptrs, mask, reads=True, writes=False)
        return load(self, ptrs, mask, *rest, **options)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        watch().access(ptrs, mask, reads=False, writes=True, values=value.data)
        return store(self, ptrs, value, mask, *rest, **options)

    def create_atomic_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        watch().access(ptr, None, reads=True, writes=True)
        return exchange(self, ptr, *rest)

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        watch().access(ptr, mask, reads=True, writes=True)
        return combine(self, op, ptr, val, mask, *rest)

    for replacement in (create_masked_load, create_masked_store, create_atomic_cas, create_atomic_rmw):
        yield builder, replacement.__name__, replacement
    names = ("addptr", "broadcast", "expand_dims", "reshape", "trans", "bitcast", "splat", "unsplat")
    for name in (f"create_{name}" for name in names):
        yield builder, name, _keeping_origin(getattr(builder, name))
    handles = [getattr(interpreter, name, None) for name in ("TensorDescHandle", "BlockPointerHandle")]
    for kind in filter(None, handles):  # Triton 3.9 has no block pointers
        yield kind, "materialize_pointers", _keeping_base(kind.materialize_pointers)


def _keeping_origin(stock: Callable) -> Callable:
    """Pointer arithmetic whose result still knows the argument."""

    def method(self: Any, *args: Any) -> Any:
        result = stock(self, *args)
        for part in args[:2]:
            if isinstance(part, interpreter.TensorHandle) and "argument" in part.attr:
                result.attr["argument"] = part.attr["argument"]
        return result

    return method


def _keeping_base(stock: Callable) -> Callable:
    def materialize_pointers(self: Any, *args: Any) -> Any:
        pointers, mask = stock(self, *args)
        if "argument" in self.base.attr:
            pointers.attr["argument"] = self.base.attr["argument"]
        return pointers, mask

    return materialize_pointers


def _source_line() -> str:
    """File and line of the kernel, or of the helper it calls."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_KERNELS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
