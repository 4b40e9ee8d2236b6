"""Whether this thread is inside ``batch_invariant()``: what operations ask that otherwise choose by the size of a batch.

Apart from the mode itself, so that asking imports nothing.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_switch.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State(threading.local):
    depth = 0


_STATE = _State()


def is_on() -> bool:
    """Whether results must not depend on the batch."""
    return _STATE.depth > 0


@contextmanager
def switched_on() -> Iterator[None]:
    """Answer yes inside, in this thread; nests."""
    _STATE.depth += 1
    try:
        yield
    finally:
        _STATE.depth -= 1
