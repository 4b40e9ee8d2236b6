"""Page-locked host memory, which a GPU copies to at the speed of the bus, in blocks that torch does not enlarge.

torch's allocator of such memory gives every request the next power of two of bytes, and keeps a block for later requests when it is freed:
the memory goes back to the machine when the process ends. Tensors of a state are therefore laid into blocks whose sizes are powers of two
already, large ones first, so that together they take little more than the tensors themselves; and the next copy of the same state gets the
same blocks again. Exercise it: ``pytest tests/ms4_train/checkpoint/test_page_locked.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def page_locked_bytes(size: int) -> int:
    """What torch takes for a request of that many bytes, at its default settings."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


class PageLocked:
    """Hands out fp32 vectors in page-locked memory.

    Args:
        values: how many will be asked for in all.
        pin: False takes plain memory, for tests on a machine without a GPU.
    """

    def __init__(self, values: int, *, pin: bool = True) -> None:
        self._left, self._pin = values, pin
        self._open: list[Tensor] = []
        self.values = 0
        """In all blocks so far."""

    def take(self, count: int) -> Tensor:
        """An uninitialised vector of ``count`` values; its block is in use as long as any vector of it is."""
        number = next((number for number, block in enumerate(self._open) if block.numel() >= count), None)
        if number is None:
            # A power of two of 4 byte values is one of bytes. What is left over is filled by later, smaller ones.
            size = max(page_locked_bytes(count), 1 << max(self._left, 1).bit_length() - 1)
            number = len(self._open)
            self._open.append(torch.empty(size, dtype=torch.float32, pin_memory=self._pin))
            self.values += size
        taken, rest = self._open[number].split([count, self._open[number].numel() - count])
        self._open[number] = rest
        self._left -= count
        return taken
