"""The sum of a tensor's squares, for the norm of all gradients, by the compiled kernels where they serve.

torch's ``vector_norm`` reads 200 MB of gradients with one thread's arithmetic; this reads them as fast as memory gives them.
Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_norm.py``.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ms4_kernels.native.library import library, readable

_LEAST = 1 << 14


def sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of the squares of all values, fp64, a scalar on the device of ``x``."""
    loaded = library() if x.dtype == torch.float32 and x.numel() >= _LEAST and readable(x) and x.is_contiguous() else None
    if loaded is None:
        return torch.linalg.vector_norm(x).double() ** 2
    total = ctypes.c_double()
    arguments = (ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()), ctypes.byref(total), ctypes.c_int32(torch.get_num_threads()))
    if loaded.ms4_sum_of_squares(*arguments):
        raise MemoryError("no memory for the partial sums of a norm")
    return torch.tensor(total.value, dtype=torch.float64)
