"""The mode itself: torch's operations that choose an order of summing by the size of the batch are answered by ones that do not.

A dispatch mode sees every operation below autograd, the modules' own and those of libraries. Products go to ``products``, sums and softmax
to ``rows``, functions whose last digits depend on where in memory a number lies (on CPUs) to ``pointwise``. The package's own operations
ask :func:`ms4_kernels.invariant.is_on` and make one fixed choice.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_mode.py``; a whole network: ``test_mode_network.py`` beside it.

Not covered: convolutions over batches, and torch's own attention over several sequences at once; the network uses neither in the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.invariant.switch import switched_on

__all__ = ["batch_invariant"]


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Inside, in this thread, what is computed for a row has the same bits whatever other rows are computed beside it.

    Slower: products are made by one kernel with one tile, and some operations go row by row. It nests.
    """
    with switched_on(), _Mode():
        yield


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        rule = _rules().get(func)
        if rule is not None:
            return rule(func, *args, **kwargs)
        # Without autograd (inference mode) compound operations arrive whole: their parts must come here one by one.
        with self:
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts


@cache
def _rules() -> dict[Any, Callable[..., Any]]:
    """Operation -> what answers it, called with the operation first. Made at the first use: importing this package stays cheap."""
    from ms4_kernels.invariant import pointwise, products, rows

    aten = torch.ops.aten
    rules: dict[Any, Callable[..., Any]] = {
        aten.mm.default: products.mm,
        aten.mm.out: products.mm,
        aten.bmm.default: products.bmm,
        aten.bmm.out: products.bmm,
        aten.addmm.default: products.addmm,
        aten.addmm_.default: products.addmm,
        aten.baddbmm.default: products.baddbmm,
        aten.baddbmm_.default: products.baddbmm,
        aten.mv.default: products.mv,
        aten.sum.dim_IntList: rows.total,
        aten.mean.dim: rows.mean,
        aten._softmax.default: rows.softmax,
        aten._log_softmax.default: rows.log_softmax,
        aten.logsumexp.default: rows.logsumexp,
    }
    names = ("exp", "log", "log1p", "sigmoid", "silu", "tanh", "gelu", "erf", "cos", "sin", "rsqrt")
    for name in names:
        packet = getattr(aten, name)
        rules[packet.default] = pointwise.one_place
        if hasattr(aten, name + "_"):
            rules[getattr(aten, name + "_").default] = pointwise.one_place
    return rules
