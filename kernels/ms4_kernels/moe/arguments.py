"""Parameters of the experts operation as flat lists of tensors, which is what autograd keeps, and back.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_arguments.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ms4_kernels.quantised import QuantisedWeight

Parameter = Tensor | QuantisedWeight | None


def flatten(parameters: Sequence[Parameter]) -> tuple[list[Tensor | None], list[type[QuantisedWeight] | None]]:
    """The tensors that parameters consist of, and which parameters are quantised (their class, else None)."""
    tensors: list[Tensor | None] = []
    kinds: list[type[QuantisedWeight] | None] = []
    for parameter in parameters:
        is_quantised = isinstance(parameter, QuantisedWeight)
        tensors.extend(parameter.tensors if is_quantised else [parameter])
        kinds.append(type(parameter) if is_quantised else None)
    return tensors, kinds


def restore(tensors: Sequence[Any], kinds: Sequence[type[QuantisedWeight] | None]) -> list[Parameter]:
    """Undo :func:`flatten`."""
    left = iter(tensors)
    return [next(left) if kind is None else kind(*itertools.islice(left, len(dataclasses.fields(kind)))) for kind in kinds]
