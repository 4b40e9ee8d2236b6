"""What there is to know of one compiled form of a kernel before it runs: its argument types, constants and launch options.

Operations list theirs in a ``specimens.py`` beside their kernels; ``ms4_kernels.report`` compiles them ahead of time, without a GPU.
Exercise it: ``make kernels-report``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """One kernel in one configuration.

    Attributes:
        operation: the room it belongs to: ``moe``, ``routing``, ``cross_entropy``.
        name: what the kernel computes: ``up``, ``down``, ``dh``.
        kernel: the ``triton.jit`` function.
        arguments: run-time argument -> Triton type (``*bf16``, ``i32``); ``:16`` at the end says that it is divisible by 16, as the
            launcher finds for aligned pointers and even widths, and without which loads are not vectorised.
        constants: ``tl.constexpr`` argument -> value.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline.
        is_gemm: whether it must use the tensor cores.
        warp_specialised: whether it claims producer and consumer warps.
        representative: whether `make test` compiles it; the report compiles all.
        block: (rows, columns) of its output tile, for GEMMs; () otherwise.
        rows_per_expert: the least rows per expert for which the launcher picks it; 0 where that does not matter.
    """

    operation: str
    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    is_gemm: bool = True
    warp_specialised: bool = False
    representative: bool = True
    block: tuple[int, ...] = ()
    rows_per_expert: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
