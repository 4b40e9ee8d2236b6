"""Random quantised weights of any shape, finite and of ordinary size, and a count of the matrices alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight


def codes(*shape: int) -> torch.Tensor:
    """Bytes that are finite E4M3 numbers of either sign."""
    return torch.randint(0, 0x7F, shape, dtype=torch.uint8) | torch.randint(0, 2, shape, dtype=torch.uint8) << 7


def fp8_weight(*shape: int, groups: int = 1) -> Fp8Weight:
    """Values up to about 1 / sqrt(I), as a trained matrix has them."""
    return Fp8Weight(codes(*shape), (torch.rand(*shape[:-2], groups) + 0.5) / 448 / shape[-1] ** 0.5)


def nvfp4_weight(*shape: int, groups: int = 1) -> Nvfp4Weight:
    """Values up to about 1 / sqrt(I)."""
    packed = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8)
    scales = torch.randint(0, 0x7F, (*shape[:-1], shape[-1] // 16), dtype=torch.uint8)
    return Nvfp4Weight(packed, scales, (torch.rand(*shape[:-2], groups) + 0.5) * 448 * 6 * shape[-1] ** 0.5)


class LiveMatrices(TorchDispatchMode):
    """Follows new floating tensors of given numbers of elements from birth to death.

    Attributes:
        peak: the most that were alive at once, in elements.
        made: how many were made.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self._sizes = sizes
        self._alive: dict[int, int] = {}
        self.peak = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                storage = x.untyped_storage()
                if storage.nbytes() in [size * x.element_size() for size in self._sizes] and storage._cdata not in before:
                    self._follow(storage, storage.nbytes() // x.element_size())
        return out

    def _follow(self, storage: torch.UntypedStorage, elements: int) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = elements
        self.made += 1
        self.peak = max(self.peak, sum(self._alive.values()))
        weakref.finalize(storage, self._alive.pop, key, None)
