"""Writes new tokens' latents to their places in the paged cache, in Triton; E4M3 by integer arithmetic, so on any device.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_write_kernel.py``.

Shape suffixes: m latent and rotary key.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_kernel(pool_ptr, latent_ptr, slot_ptr, latent_stride_t, WIDTH: tl.constexpr, IS_FP8: tl.constexpr, BLOCK_M: tl.constexpr):
    """Write one token's row of latent [T, WIDTH] to row ``slot[t]`` of pool [n * s, WIDTH]; nothing where that is negative."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token)
    m_m = tl.arange(0, BLOCK_M)
    is_value_m = (m_m < WIDTH) & (slot >= 0)
    value_m = tl.load(latent_ptr + token * latent_stride_t + m_m, mask=is_value_m, other=0.0)
    if IS_FP8:
        stored_m = fp32_to_e4m3(value_m.to(tl.float32))
    else:
        stored_m = value_m.to(pool_ptr.dtype.element_ty)
    tl.store(pool_ptr + slot * WIDTH + m_m, stored_m, mask=is_value_m)


@triton.jit
def fp32_to_e4m3(value):
    """The E4M3 code of each number, to nearest, ties to even, clipped at 448; NaN stays NaN.

    Normal ones: half a unit of the 20 bits that go is added, less one bit for ties to even, and the exponent's bias changes from 127 to 7.
    Below 2^-6: adding 2^14, whose last place is 2^-9, leaves the multiple of 2^-9 in the lowest bits.
    """
    bits = value.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(value), 448.0)
    size_bits = size.to(tl.uint32, bitcast=True)
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - (120 << 3)
    small = (size + 16384.0).to(tl.uint32, bitcast=True) & 0x7F
    code = tl.where(size < 0.015625, small, normal)
    code = tl.where(value != value, 0x7F, code)
    return (sign | code).to(tl.uint8)
