"""Sorted rows of a small ragged routing, and the rule that a kernel loses at most twice what plain torch loses in the same type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ms4_kernels.moe.triton.operands import Rows
from ms4_kernels.routing import sort_by_expert


@pytest.fixture
def ragged() -> Rows:
    """47 tokens, two experts each, of five experts: one has no rows, one has a single row."""
    ids_tk = torch.randint(0, 3, (47, 2))
    ids_tk[5, 1] = 4
    return Rows(sort_by_expert(ids_tk, 5, backend="reference"), 2)


@pytest.fixture
def holds():
    """``holds(found, truth, bar)``: the error against fp64 is at most twice that of plain torch."""

    def check(found: Tensor, truth: Tensor, bar: Tensor) -> None:
        assert found.dtype == bar.dtype
        error, allowed = ((x.double() - truth).norm() for x in (found, bar))
        # One rounding of the result is all that the bar may lack: where plain torch happens to be exact, a half unit in the last place.
        assert error <= 2 * allowed + truth.norm() * torch.finfo(bar.dtype).eps / 2

    return check
