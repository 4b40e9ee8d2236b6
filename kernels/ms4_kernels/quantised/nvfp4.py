"""NVFP4 weights: four bits for each value (E2M1), an E4M3 scale for each 16 columns, and a divisor for the matrix.

``W = e2m1(code) * (e4m3(block scale) / global scale)``; the global scale divides. Two codes to a byte, the even column in the low half.
Exercise it: ``pytest tests/kernels/ms4_kernels/quantised/test_nvfp4.py``.

Not covered: making NVFP4 codes from weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ms4_kernels.quantised.lookup import bits_of, joined, pays, take

BLOCK = 16
"""Columns that share a block scale."""

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device="cpu")
_BLOCKS_AT_A_TIME = 1 << 13  # so many indices are made at a time as one step of the look-up takes
_EIGHT_COPIES = np.uint64(0x0101010101010101)


def dequantise_nvfp4(codes: Tensor, block_scale: Tensor, global_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values in ``dtype``.

    The quotient of the two scales is made in fp32 and rounded there, then the product with the code, rounded to fp32 and from there to
    ``dtype``: what ``NVFP4PackedCompressor.decompress`` of compressed-tensors 0.20 computes for a global scale of shape [1], as files have
    it, so bf16 results are equal to the bit. That decoder ends in bf16; an fp32 result here is the product before that last rounding.

    Args:
        codes: uint8 [..., O, I / 2].
        block_scale: uint8 [..., O, I / 16], E4M3 bits.
        global_scale: floating [...], one divisor for each matrix.
        dtype: floating type of the result.

    Returns:
        [..., O, I].
    """
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    if shape[-1] != BLOCK * block_scale.shape[-1] or codes.shape[:-1] != block_scale.shape[:-1]:
        raise ValueError(
            f"codes {list(codes.shape)} and block scales {list(block_scale.shape)} are not [..., O, I / 2] and [..., O, I / 16]"
        )
    if global_scale.shape != codes.shape[:-2]:
        raise ValueError(f"global scales {list(global_scale.shape)} for codes {list(codes.shape)}, expected one for each matrix")
    if not pays(codes, dtype):
        return _arithmetic(codes, block_scale, global_scale[..., None, None], dtype).view(shape)
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    matrices = codes.shape[:-2].numel()
    parts = (part.reshape(matrices, -1).unbind(0) for part in (codes, block_scale, out))
    for matrix, scales, result, divisor in zip(*parts, global_scale.reshape(matrices), strict=True):
        _decode(matrix, scales, divisor, result)
    return out


def _decode(codes: Tensor, block_scale: Tensor, divisor: Tensor, out: Tensor) -> None:
    """Decode one matrix on a CPU: a pair of results for each of the 65,536 combinations of a scale byte and a code byte."""
    every_scale = torch.arange(256, dtype=torch.uint8, device="cpu")[:, None]
    every_code = torch.arange(16, dtype=torch.uint8, device="cpu")
    entries_sc = bits_of(_arithmetic(every_code.expand(256, 16), every_scale, divisor, out.dtype)[:, 0, :, 0].contiguous())
    table_shl2 = np.empty((256, 16, 16, 2), entries_sc.dtype)  # scale byte, high half of the code byte, low half, the two results
    table_shl2[..., 0] = entries_sc[:, None, :]
    table_shl2[..., 1] = entries_sc[:, :, None]
    pairs, results = joined(table_shl2), joined(bits_of(out))
    code_bytes, scales = codes.numpy(), block_scale.numpy()
    for start in range(0, scales.size, _BLOCKS_AT_A_TIME):
        part = slice(start, start + _BLOCKS_AT_A_TIME)
        # Each scale eight times by one multiplication of 64 bits: loops over eight elements cost numpy three times as much.
        index = (scales[part].astype(np.uint64) * _EIGHT_COPIES).view(np.uint8).astype(np.uint16)
        index <<= 8
        span = slice(start * BLOCK // 2, start * BLOCK // 2 + index.size)
        index |= code_bytes[span]
        take(pairs, index, results[span])


def _arithmetic(codes: Tensor, block_scale: Tensor, divisor: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [..., O, J] with scales [..., O, B], J / B bytes to a scale, to [..., O, B, J / B, 2]."""
    wide = torch.promote_types(dtype, torch.float32)
    values = torch.cat((_E2M1, -_E2M1)).to(codes.device, wide)
    nibbles = torch.stack((codes & 0xF, codes >> 4), dim=-1).unflatten(-2, (block_scale.shape[-1], -1))
    scale = block_scale.view(torch.float8_e4m3fn).to(wide) / divisor.to(wide)
    return values[nibbles.int()].mul_(scale[..., None, None]).to(dtype)
