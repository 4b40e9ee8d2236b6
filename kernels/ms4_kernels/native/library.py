"""The compiled kernels as Python functions: loaded once, proven on a small product, or absent with a reason.

``MS4_NATIVE=0`` leaves them out. Calls release the interpreter's lock and use torch's number of threads.
Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_library.py``.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import Parameter

from ms4_kernels.native.compile import CompileError, compiled

_LOG = logging.getLogger("ms4_kernels")


def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None; the first call says in the log which, and why."""
    return _load()[0]


def why_not() -> str:
    """Why there are none; empty where there are."""
    return _load()[1]


def readable(*tensors: Tensor | None) -> bool:
    """Whether all (None aside) are plain tensors in the CPU's memory, whose address may be handed out.

    Not so for tensors on other devices, distributed, sparse and fake ones, nor for those that ``torch.func`` wraps.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    plain = all(type(x) in (Tensor, Parameter) and x.device.type == "cpu" and x.layout == torch.strided for x in present)
    return plain and not any(is_functorch_wrapped_tensor(x) for x in present)


def lanes(loaded: ctypes.CDLL) -> int:
    """How many fp32 numbers one vector register holds: 16 with AVX-512, 8 with AVX2, else 4."""
    return int(loaded.ms4_lanes())


def product(loaded: ctypes.CDLL, left_mk: Tensor, right_kn: Tensor, out_mn: Tensor, *, alpha: float = 1.0, adds: bool = False) -> None:
    """Write ``alpha * left @ right`` to ``out``, or add it: the product that all kernels are made of, for tests.

    Args:
        left_mk: fp32 [M, K] of any strides.
        right_kn: fp32 [K, N], rows contiguous.
        out_mn: fp32 [M, N], rows contiguous.
        alpha: factor.
        adds: add to what is there.
    """
    (rows, depth), columns = left_mk.shape, right_kn.shape[1]
    strides = (left_mk.stride(0), left_mk.stride(1), right_kn.stride(0), out_mn.stride(0))
    loaded.ms4_product(
        *(ctypes.c_int32(size) for size in (rows, columns, depth)),
        *(ctypes.c_void_p(part.data_ptr()) for part in (left_mk, right_kn, out_mn)),
        *(ctypes.c_int64(stride) for stride in strides),
        ctypes.c_float(alpha),
        ctypes.c_int32(adds),
    )


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("MS4_NATIVE") == "0":
        _LOG.info("compiled CPU kernels are left out: MS4_NATIVE=0")
        return None, "MS4_NATIVE=0"
    try:
        loaded = _open()
        with unset_fake_temporarily():
            _prove(loaded)
    except (CompileError, OSError, AttributeError) as error:
        _LOG.warning("compiled CPU kernels are not used (%s): the experts run on plain torch, about half as fast", error)
        return None, str(error)
    _LOG.info("compiled CPU kernels: %d lanes", lanes(loaded))
    return loaded, ""


def _open() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(compiled()))
    except OSError:  # this torch shows no OpenMP to others
        return ctypes.CDLL(str(compiled(own_openmp=True)))


def _prove(loaded: ctypes.CDLL) -> None:
    """A compiler that miscompiles is better found here than in a loss curve."""
    generator = torch.Generator().manual_seed(0)
    left_mk, right_kn = torch.randn(13, 37, generator=generator), torch.randn(37, 75, generator=generator)
    out_mn = torch.empty(13, 75)
    product(loaded, left_mk, right_kn, out_mn)
    if not torch.allclose(out_mn, left_mk @ right_kn, rtol=1e-4, atol=1e-4):
        raise CompileError("the compiled product is wrong on a test matrix")
