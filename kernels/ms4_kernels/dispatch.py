"""The one place that decides which implementation of an operation runs: Triton on a GPU, the CPU path elsewhere, the reference on request.

Each decision is logged once, with the operation, the device and the type; a GPU that has to do without Triton is a warning.
Exercise it: ``pytest tests/kernels/ms4_kernels/test_dispatch.py``.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Backend", "choose", "has_triton", "runs_triton"]

Backend = Literal["auto", "reference", "cpu", "triton"]

_LOG = logging.getLogger("ms4_kernels")
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(operation: str, backend: Backend, tensor: Tensor, *, has_kernel: bool = True) -> str:
    """Resolve ``auto``, and check what was asked for by name.

    Args:
        operation: named in the log: ``experts``, ``routing``.
        backend: ``auto`` takes Triton on a CUDA or ROCm device and the CPU path everywhere else.
        tensor: whose device and type decide.
        has_kernel: False where this call is of a kind that the operation's kernels do not serve.

    Returns:
        ``reference``, ``cpu`` or ``triton``.

    Raises:
        ValueError: an unknown name, or Triton asked for where it cannot run.
    """
    return _choose(operation, backend, tensor.device.type, tensor.dtype, has_kernel, runs_triton(tensor.device))


def has_triton() -> bool:
    """Whether Triton is installed; CPU builds of torch come without it."""
    return importlib.util.find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether kernels can be launched on tensors of this device. Tests that interpret kernels on the CPU replace this function."""
    return device.type == "cuda" and has_triton()


@cache
def _choose(operation: str, backend: str, device: str, dtype: torch.dtype, has_kernel: bool, can_launch: bool) -> str:
    """Cached, so that each decision is logged once."""
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f"unknown {operation} backend {backend!r}; known: auto, reference, cpu, triton")
    serves = can_launch and has_kernel and dtype in _TRITON_DTYPES
    if backend == "triton" and not serves:
        why = f"tensors of {dtype}" if can_launch and has_kernel else f"this kind of call on {device}" if can_launch else f"device {device}"
        raise ValueError(f"the {operation} operation has no Triton kernel for {why}; backend 'auto' picks what runs")
    chosen = ("triton" if serves else "cpu") if backend == "auto" else backend
    missing = device == "cuda" and chosen == "cpu" and backend == "auto"
    log = _LOG.warning if missing else _LOG.info
    because = ": Triton is not installed, or has no kernel for this call; slow" if missing else ""
    log("%s operation: %s backend on %s, %s%s", operation, chosen, device, str(dtype).removeprefix("torch."), because)
    return chosen
