"""Conversions of one byte or two as walks through a table, which on a CPU beats arithmetic: the table holds what arithmetic would give.

Two neighbouring bytes are looked up as one of 65,536 pairs. Measured on one thread of a shared two-core machine with
``dequantise_fp8`` of [8, 2048, 4096] codes to bf16: 0.9 GB of codes per second into fresh memory, whose pages take more time than the
look-up, and 2.5 into memory in use; widening, multiplying and narrowing gave 0.15, numpy's ``take`` of single bytes 0.4.
In chunks, because ``take`` widens its indices to 64 bits. The interpreter's lock is free meanwhile, so threads work side by side.
Exercise it: ``pytest tests/kernels/ms4_kernels/quantised/test_lookup.py``.

Not covered: devices other than CPUs, which have arithmetic to spare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 16  # indices; their 64-bit copies are half a megabyte, which a core's own cache holds
_WORTH = 1 << 17  # bytes of input from which making a table of pairs (some 0.1 ms) costs less than it saves
_UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


def pays(source: Tensor, dtype: torch.dtype) -> bool:
    """Whether tables serve for converting ``source`` to ``dtype``, and save time: large, on a CPU, of even rows, at most 4 bytes out."""
    return (
        source.device.type == "cpu"
        and source.numel() * source.element_size() >= _WORTH
        and source.shape[-1] % 2 == 0
        and dtype.itemsize <= 4
        and sys.byteorder == "little"
    )


def look_up_pairs(codes: Tensor, table: Tensor, out: Tensor) -> None:
    """Write ``table[codes]`` into ``out``.

    Args:
        codes: uint8 [N] on the CPU, contiguous, N even.
        table: 256 values of 1, 2 or 4 bytes.
        out: [N] of the table's type, contiguous.
    """
    entries = bits_of(table)
    pairs = np.empty((256, 256, 2), entries.dtype)
    pairs[:, :, 0] = entries  # the low byte, so the neighbour to the left
    pairs[:, :, 1] = entries[:, None]
    take(joined(pairs), codes.numpy().view(np.uint16), joined(bits_of(out)))


def tabulate(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``function(values)`` for an elementwise function of a 16-bit type, by way of its 65,536 results; ``values`` on the CPU."""
    table = function(torch.arange(1 << 16, dtype=torch.int32, device="cpu").to(torch.uint16).view(values.dtype))
    out = torch.empty(values.shape, dtype=table.dtype, device="cpu")
    take(bits_of(table), bits_of(values.contiguous()).reshape(-1), bits_of(out).reshape(-1))
    return out


def take(table: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Write ``table[index]`` into ``out``, all of one dimension, in chunks; every index must lie within the table."""
    for start in range(0, index.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        np.take(table, index[part], out=out[part], mode="clip")  # the default mode copies ``out`` to protect it from a bad index


def bits_of(values: Tensor) -> np.ndarray:
    """The values as unsigned integers of their size, sharing memory; numpy knows neither bf16 nor E4M3."""
    return values.view(torch.uint8).numpy().view(_UNSIGNED[values.element_size()])


def joined(pairs: np.ndarray) -> np.ndarray:
    """Neighbours of a contiguous array as one integer each, [N / 2]."""
    return pairs.reshape(-1).view(_UNSIGNED[2 * pairs.itemsize])
