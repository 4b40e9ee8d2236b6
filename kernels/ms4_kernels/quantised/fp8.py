"""FP8 weights in E4M3 (``fn``: no infinities, largest 448): a byte for each value, a scale for each matrix, ``W = code * scale``.

Exercise it: ``pytest tests/kernels/ms4_kernels/quantised/test_fp8.py``.

Not covered: E5M2, block scales, the rounding of activations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ms4_kernels.quantised.lookup import look_up_pairs, pays, tabulate

E4M3_MAX = 448.0
"""The largest E4M3 value."""

_SATURATES = 464.0  # half a step of 32 above the largest value: from here on rounding alone would leave the range
_SCALE_FITS_MATRIX = (1, 1)
_ALL_CODES = torch.arange(256, dtype=torch.uint8, device="cpu")


def dequantise_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``code * scale`` in ``dtype``.

    The product is made in fp32 (in fp64 for an fp64 result) and rounded to ``dtype``. That is exact before the last rounding for a bf16
    scale, 4 by 8 bits of significand, and then equal to the product in bf16 that transformers' converter makes.

    Args:
        codes: uint8 [..., O, I], E4M3 bits.
        scale: floating, broadcastable to ``codes``: a scalar for one matrix, [E, 1, 1] for a stack.
        dtype: floating type of the result.

    Returns:
        [..., O, I].
    """
    if not (_one_scale_per_matrix(codes, scale) and pays(codes, dtype)):
        return _arithmetic(codes, scale, dtype)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    matrices = codes.shape[:-2].numel()
    scales = scale.expand(*codes.shape[:-2], 1, 1).reshape(matrices) if scale.ndim >= 2 else scale.reshape(1).expand(matrices)
    for matrix, one_scale, result in zip(_flat(codes, matrices), scales, _flat(out, matrices), strict=True):
        look_up_pairs(matrix, _arithmetic(_ALL_CODES, one_scale, dtype), result)
    return out


def quantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the E4M3 codes nearest to ``weight / scale``, ties to even; beyond 448 the largest code of the sign.

    The quotient is made in fp32. Codes that :func:`dequantise_fp8` turned into bf16 or fp32 come back as they were. A NaN stays one.

    Args:
        weight: floating [..., O, I].
        scale: floating, broadcastable to ``weight``, greater than zero.

    Returns:
        uint8, the shape of ``weight``.

    Raises:
        ValueError: a scale is zero, negative or not finite.
    """
    _check_scale(scale)
    if scale.numel() == 1 and weight.dtype == torch.bfloat16 and pays(weight, torch.uint8):
        return tabulate(weight.detach(), lambda values: _round(values, scale.reshape(())))
    return _round(weight, scale)


def count_saturated(weight: Tensor, scale: Tensor) -> int:
    """Return how many values :func:`quantise_fp8` would clip: those more than half a step beyond 448 times the scale."""
    if scale.numel() == 1 and weight.numel() and bool(_quotient(_largest(weight.flatten()), scale) <= _SATURATES):
        return 0  # the usual case, at the price of reading once
    return int((_quotient(weight, scale).abs_() > _SATURATES).sum())


def fit_fp8_scale(weight: Tensor) -> Tensor:
    """Return the scale that maps the largest magnitude of each matrix to 448, fp32 [...] for [..., O, I]; 1 for a matrix of zeros.

    Rounding it to bf16 costs no saturation: 448 * (1 + 2^-8) is within half a step of 448.

    Raises:
        ValueError: a value is not finite.
    """
    largest = _largest(weight.flatten(-2)).float()
    if not bool(largest.isfinite().all()):
        raise ValueError("the weight holds values that are not finite")
    # Below the smallest normal number a scale would lose precision, or vanish in the quotient.
    scale = (largest / E4M3_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def fuse_fp8_pair(gate_codes: Tensor, gate_scale: Tensor, up_codes: Tensor, up_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two matrices to the larger of their scales and stack them, as transformers fuses an expert's gate and up projections.

    Codes of the smaller scale are multiplied by the ratio of the scales (taken in the scales' type, the product in bf16), clipped to 448
    and rounded again: lossy. From ``convert_mistral4_weight_to_hf.py`` of transformers 5.23.

    Args:
        gate_codes: uint8 [n, d].
        gate_scale: one floating number, its scale; 0-d as the files have it (another shape would widen the product's type).
        up_codes: uint8 [n, d].
        up_scale: as ``gate_scale``.

    Returns:
        Codes [2n, d], gate rows first, and the common scale in the type and shape of ``gate_scale``.
    """
    fused = torch.maximum(gate_scale, up_scale)
    halves = [_rescale(gate_codes, gate_scale / fused), _rescale(up_codes, up_scale / fused)]
    return torch.cat(halves), fused


def _rescale(codes: Tensor, ratio: Tensor) -> Tensor:
    # Each code has one successor, so the arithmetic is done on the 256 codes; int32 because that is the fastest index.
    values = _ALL_CODES.to(codes.device).view(torch.float8_e4m3fn).to(torch.bfloat16) * ratio
    table = values.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    out = torch.empty_like(codes, memory_format=torch.contiguous_format)
    if pays(codes, torch.uint8):
        look_up_pairs(codes.reshape(-1), table, out.view(-1))
        return out
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)


def _arithmetic(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    return codes.view(torch.float8_e4m3fn).to(wide).mul_(scale.to(wide)).to(dtype)


def _one_scale_per_matrix(codes: Tensor, scale: Tensor) -> bool:
    return scale.numel() == 1 or (scale.ndim == codes.ndim and tuple(scale.shape[-2:]) == _SCALE_FITS_MATRIX)


def _flat(stack: Tensor, matrices: int) -> tuple[Tensor, ...]:
    return stack.reshape(matrices, -1).unbind(0)


def _largest(values: Tensor) -> Tensor:
    low, high = values.detach().aminmax(dim=-1)
    return torch.maximum(-low, high)


def _check_scale(scale: Tensor) -> None:
    if scale.device.type != "meta" and not bool(((scale > 0) & (scale < math.inf)).all()):
        raise ValueError("a scale is zero, negative or not finite")


def _quotient(weight: Tensor, scale: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(wide) / scale.detach().to(wide)


def _round(weight: Tensor, scale: Tensor) -> Tensor:
    return _quotient(weight, scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
