"""One head width for queries, keys and values, for kernels that want it.

Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_widths.py``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded_to_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three with zeros behind the narrower last axis. Zeros change no score; outputs are zero where values were padded."""
    lacking = value.shape[-1] - key.shape[-1]
    if lacking > 0:
        return F.pad(query, (0, lacking)), F.pad(key, (0, lacking)), value
    return query, key, F.pad(value, (0, -lacking)) if lacking else value
