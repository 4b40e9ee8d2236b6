"""A frozen weight as it is kept: codes and scales together, one matrix or a stack of experts, dequantised on request.

Exercise it: ``pytest tests/kernels/ms4_kernels/quantised/test_weight.py``.

Not covered: training such a weight, or making one from values.

Shape suffixes: o output features, i input features, g groups of rows with a scale of their own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ms4_kernels.quantised.fp8 import dequantise_fp8
from ms4_kernels.quantised.nvfp4 import BLOCK, dequantise_nvfp4


class _Frozen:
    """What both kinds share. Every tensor has the same leading dimensions: none for a matrix, one for a stack of experts."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parts, in the order of the constructor."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]

    @property
    def shape(self) -> torch.Size:
        """Of the values, [..., O, I]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.tensors[0].device

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def expert(self, index: int) -> Self:
        """One matrix of a stack; a view."""
        return type(self)(*(tensor[index] for tensor in self.tensors))

    def experts(self, start: int, stop: int) -> Self:
        """Part of a stack; a view."""
        return type(self)(*(tensor[start:stop] for tensor in self.tensors))

    def to(self, device: torch.device | str) -> Self:
        """The same weight on another device."""
        return type(self)(*(tensor.to(device) for tensor in self.tensors))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The values in ``dtype``, [..., O, I]."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Fp8Weight(_Frozen):
    """E4M3 codes and fp32 scales that multiply.

    Attributes:
        codes: uint8 [..., O, I].
        scale: fp32 [..., G]; group g covers rows g * O / G up to (g + 1) * O / G. Two groups for gate and up projections of the native
            layout, which lie in one stack and were scaled apart; one for everything else.

    Raises:
        ValueError: types or shapes that do not fit together.
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        _check_type("codes", self.codes, torch.uint8)
        _check_type("scale", self.scale, torch.float32)
        _check_groups(self.codes, self.scale)

    @property
    def shape(self) -> torch.Size:
        """Of the values, [..., O, I]."""
        return self.codes.shape

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The values in ``dtype``, [..., O, I]; see :func:`dequantise_fp8`."""
        return dequantise_fp8(_grouped(self.codes, self.scale), self.scale[..., None, None], dtype).view(self.shape)


@dataclass(frozen=True, eq=False)
class Nvfp4Weight(_Frozen):
    """Four-bit codes, E4M3 scales of 16 columns that multiply, and fp32 scales that divide.

    Attributes:
        codes: uint8 [..., O, I / 2], the even column in the low half.
        block_scale: uint8 [..., O, I / 16], E4M3 bits.
        global_scale: fp32 [..., G]; groups of rows as in :class:`Fp8Weight`.

    Raises:
        ValueError: types or shapes that do not fit together.
    """

    codes: Tensor
    block_scale: Tensor
    global_scale: Tensor

    def __post_init__(self) -> None:
        _check_type("codes", self.codes, torch.uint8)
        _check_type("block_scale", self.block_scale, torch.uint8)
        _check_type("global_scale", self.global_scale, torch.float32)
        _check_groups(self.codes, self.global_scale)
        if self.block_scale.shape[:-1] != self.codes.shape[:-1] or 2 * self.codes.shape[-1] != BLOCK * self.block_scale.shape[-1]:
            raise ValueError(f"block scales {list(self.block_scale.shape)} do not fit codes {list(self.codes.shape)}")

    @property
    def shape(self) -> torch.Size:
        """Of the values, [..., O, I]."""
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The values in ``dtype``, [..., O, I]; see :func:`dequantise_nvfp4`."""
        codes, block_scale = _grouped(self.codes, self.global_scale), _grouped(self.block_scale, self.global_scale)
        return dequantise_nvfp4(codes, block_scale, self.global_scale, dtype).view(self.shape)


QuantisedWeight = Fp8Weight | Nvfp4Weight


def _grouped(part_oi: Tensor, scale_g: Tensor) -> Tensor:
    """[..., O, I] to [..., G, O / G, I]."""
    return part_oi.unflatten(-2, (scale_g.shape[-1], -1))


def _check_type(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} of type {tensor.dtype}, expected {dtype}")


def _check_groups(codes_oi: Tensor, scale_g: Tensor) -> None:
    if codes_oi.ndim < 2 or scale_g.ndim != codes_oi.ndim - 1 or scale_g.shape[:-1] != codes_oi.shape[:-2]:
        raise ValueError(f"scales {list(scale_g.shape)} do not fit codes {list(codes_oi.shape)}; expected [..., G] for [..., O, I]")
    if scale_g.shape[-1] == 0 or codes_oi.shape[-2] % scale_g.shape[-1]:
        raise ValueError(f"{scale_g.shape[-1]} row groups in codes {list(codes_oi.shape)}")
