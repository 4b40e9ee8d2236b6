"""The compiled forms of the batch-invariant mode's kernels at sizes of the release.

Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_specimens.py``, and ``make kernels-report``, which compiles them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ms4_kernels.invariant.gemm_triton import gemm_kernel, tile_constants
from ms4_kernels.invariant.sum_triton import NUM_WARPS, lanes_for, sum_kernel
from ms4_kernels.specimen import Specimen

_HIDDEN = 4096
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def specimens() -> list[Specimen]:
    """Products with weights as stored (terms innermost) and as they come in batches (columns innermost), and sums of rows."""
    return [*_products(), _sum()]


def _products() -> Iterator[Specimen]:
    for kind, dtype in _TYPES.items():
        for inner in (_HIDDEN, _HIDDEN + 16):
            for by_columns in (False, True):
                constants, options = tile_constants(dtype, inner)
                unit = "b_stride_n" if by_columns else "b_stride_k"
                strides = ("a_stride_z", "a_stride_m", "b_stride_z", "b_stride_n" if not by_columns else "b_stride_k")
                parts = [kind, "product", *["uneven"] * (inner != _HIDDEN), *["by columns"] * by_columns]
                yield Specimen(
                    operation="invariant",
                    name=" ".join(parts),
                    kernel=gemm_kernel,
                    arguments={f"{name}_ptr": f"*{kind}:16" for name in ("a", "b", "out")}
                    | {"M": "i32", "N": "i32:16", "K": "i32:16"}
                    | dict.fromkeys(strides, "i32:16"),
                    constants=constants | {"a_stride_k": 1, unit: 1},
                    is_gemm=kind == "bf16",
                    representative=kind == "bf16" and not by_columns and inner == _HIDDEN,
                    block=(constants["BLOCK_M"], constants["BLOCK_N"]),
                    num_warps=options["num_warps"],
                    num_stages=options["num_stages"],
                )


def _sum() -> Specimen:
    arguments = {"x_ptr": "*fp32:16", "out_ptr": "*fp32:16", "length": "i32:16"}
    constants = {"LANES": lanes_for(_HIDDEN)}
    return Specimen("invariant", "sum of rows", sum_kernel, arguments, constants, NUM_WARPS, 3, is_gemm=False)
