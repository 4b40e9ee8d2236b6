"""Functions of single numbers that a CPU computes differently at different places of memory, for ``batch_invariant()``.

torch takes whole vectors with one implementation of ``sigmoid`` and the like, and what is left at the end of a thread's share with another,
so a number's last digit depends on where it lies and on how many there are: in fp32 one in a hundred of those differs. Here numbers are
handed over in pieces of one size, which is whole vectors and one thread's work. GPUs have one implementation.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_pointwise.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECE = 2048
"""Numbers that are handed over at a time."""


def one_place(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of ``aten.exp`` and the like, and of their forms that change their argument."""
    name = func.overloadpacket.__name__
    if name.endswith("_"):
        return x.copy_(apply(getattr(torch.ops.aten, name[:-1]).default, x, *args, **kwargs))
    return apply(func, x, *args, **kwargs)


def apply(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``func(x, ...)`` for a function of single numbers that returns a tensor like ``x``."""
    if x.device.type != "cpu" or not x.numel():
        return func(x, *args, **kwargs)
    flat = x.contiguous().flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % PIECE)) if flat.numel() % PIECE else flat.clone()
    found = torch.cat([func(piece, *args, **kwargs) for piece in padded.split(PIECE)])
    return found[: flat.numel()].view(x.shape)
