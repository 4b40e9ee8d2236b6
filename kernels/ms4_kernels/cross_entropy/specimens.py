"""The compiled forms of the cross-entropy kernel that a training or evaluation run of the release uses.

Exercise it: ``make kernels-report``.
"""

from __future__ import annotations

from ms4_kernels.cross_entropy.rows_triton import NUM_WARPS, cross_entropy_rows, lanes_for
from ms4_kernels.specimen import Specimen

_VOCABULARY = 131072


def specimens() -> list[Specimen]:
    """With and without the gradient, for logits of bf16 and fp32."""
    return [
        Specimen(
            operation="cross_entropy",
            name=f"rows, {'loss and gradient' if write else 'loss'}, {dtype}",
            kernel=cross_entropy_rows,
            arguments={"logits": f"*{dtype}:16", "target": "*i64:16", "loss": "*fp32:16", "vocabulary": "i32:16"},
            constants={"WRITE": write, "LANES": lanes_for(_VOCABULARY)},
            num_warps=NUM_WARPS,
            num_stages=2,
            is_gemm=False,
            representative=write,
        )
        for dtype in ("bf16", "fp32")
        for write in (True, False)
    ]
