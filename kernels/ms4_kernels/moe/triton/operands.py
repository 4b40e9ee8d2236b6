"""What kernels are given: a stack of weights as pointers and strides, a LoRA factor likewise, and the rows of a call cut into tiles.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_operands.py``.

Shape suffixes: e experts, o / i rows and columns of a stored matrix, l adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ms4_kernels.invariant.switch import is_on
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight, QuantisedWeight
from ms4_kernels.routing import ExpertOrder, TileList, tile_list

__all__ = ["Factor", "Rows", "Stack"]

DESCRIBE_STACKS = True
"""Whether dense stacks are handed over as tensor descriptors where the device copies tiles by itself (Hopper and later)."""

_FIRST_WITH_E4M3 = (8, 9)  # compute capability; older NVIDIA devices and AMD's decode by integer arithmetic
_INVARIANT_ROWS = 16.0  # a tile of 32 rows serves decoding, and pads prompts little
_COPY_ALIGNMENT = 16  # bytes, of the first element and of every distance between rows and matrices


@dataclass(frozen=True)
class Stack:
    """A stack of matrices [E, O, I] as the kernels take it.

    Attributes:
        kind: ``dense``, ``fp8`` or ``nvfp4``.
        values: values, or codes.
        scale: fp32 [E, G], of groups of rows; None for a dense stack.
        block_scale: E4M3 scales of 16 columns of an ``nvfp4`` stack.
    """

    kind: str
    values: Tensor
    scale: Tensor | None = None
    block_scale: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor | QuantisedWeight) -> Stack:
        """Take a weight apart. Experts may lie any distance apart, each matrix must be contiguous.

        Raises:
            ValueError: a matrix is not contiguous.
        """
        if isinstance(weight, Fp8Weight):
            stack = cls("fp8", weight.codes, weight.scale.contiguous())
        elif isinstance(weight, Nvfp4Weight):
            stack = cls("nvfp4", weight.codes, weight.global_scale.contiguous(), weight.block_scale)
        else:
            stack = cls("dense", weight)
        for part in (stack.values, stack.block_scale):
            if part is not None and part.numel() and not part[0].is_contiguous():
                raise ValueError(f"the matrices of a stack {list(part.shape)} with strides {list(part.stride())} are not contiguous")
        return stack

    @property
    def matrix(self) -> tuple[int, int]:
        """(O, I) of the values, not of the codes."""
        rows, columns = self.values.shape[1:]
        return rows, columns * 2 if self.kind == "nvfp4" else columns

    @property
    def groups(self) -> int:
        """Groups of rows that have a scale each."""
        return 1 if self.scale is None else self.scale.shape[-1]

    def arguments(self, block_o: int, block_i: int) -> dict[str, Any]:
        """What a kernel is told of the stack, which it loads in tiles [block_o, block_i]."""
        values, kind = self.values, self.kind
        if kind == "dense" and copies_tiles(values.device) and _is_aligned(values):
            values, kind = TensorDescriptor(values, list(values.shape), list(values.stride()), [1, block_o, block_i]), "described"
        return {
            "weight_ptr": values,
            "block_scale_ptr": self.block_scale,
            "scale_ptr": self.scale,
            "weight_stride_e": self.values.stride(0),
            "block_scale_stride_e": 0 if self.block_scale is None else self.block_scale.stride(0),
        } | stack_constants(kind, self.groups, self.values.shape[1], block_o, has_e4m3(self.values.device))


@dataclass(frozen=True)
class Factor:
    """One LoRA factor [E, O, I], or [L, E, O, I] with an axis of adapters."""

    values: Tensor

    @classmethod
    def of(cls, values: Tensor | None) -> Factor | None:
        """Contiguous, which a factor's views rarely are not and a copy of which is small."""
        return None if values is None else cls(values.contiguous())

    @property
    def stride_l(self) -> int:
        """Elements from adapter to adapter."""
        return self.values.stride(0) if self.values.ndim == 4 else 0

    @property
    def stride_e(self) -> int:
        """Elements from expert to expert."""
        return self.values.stride(-3)


@dataclass(frozen=True)
class Rows:
    """The sorted rows of a call; tile lists are made once for each height.

    Attributes:
        order: how the rows lie.
        top_k: experts per token.
        slots: 1, or one more than the number of adapters.
    """

    order: ExpertOrder
    top_k: int
    slots: int = 1
    _tiles: dict[int, TileList] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """R."""
        return self.order.pair_r.numel()

    @property
    def ends(self) -> Tensor:
        """int32, one past the last row of each segment: of each expert, or of each expert's adapters."""
        return self.order.ends_e if self.order.segment_ends_s is None else self.order.segment_ends_s

    @property
    def per_expert(self) -> float:
        """Rows that an expert (and adapter) has on average; what tiles are chosen by. Known without waiting for the device.

        Inside ``batch_invariant()`` one number for all batches.
        """
        if is_on():
            return _INVARIANT_ROWS
        return self.count / max(1, self.order.ends_e.numel() * max(1, self.slots - 1))

    def tiles(self, block_rows: int) -> TileList:
        """The rows cut into tiles of this height."""
        if block_rows not in self._tiles:
            self._tiles[block_rows] = tile_list(self.ends, self.count, block_rows)
        return self._tiles[block_rows]


def stack_constants(kind: str, groups: int, rows: int, block_o: int, native: bool) -> dict[str, Any]:
    """The constants of :func:`loads.load_weight_tile` for matrices of so many rows."""
    one_group = groups == 1 or rows // groups % block_o == 0
    return {"KIND": kind, "GROUPS": groups, "ONE_GROUP": one_group, "NATIVE": native and kind in ("fp8", "nvfp4")}


def has_e4m3(device: torch.device) -> bool:
    """Whether the device converts E4M3 itself."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _FIRST_WITH_E4M3


def is_hopper_or_later(device: torch.device) -> bool:
    """Whether this is an NVIDIA device of compute capability 9.0 or more."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def copies_tiles(device: torch.device) -> bool:
    """Whether the device copies tiles of a described tensor by itself: fewer registers and instructions than a pointer for each element."""
    return DESCRIBE_STACKS and is_hopper_or_later(device)


def _is_aligned(values: Tensor) -> bool:
    """Whether a stack of half precision lies as descriptors demand; exact fp32 products take tiles too small to gain."""
    distances = [values.data_ptr(), *(stride * values.element_size() for stride in values.stride()[:-1])]
    return values.element_size() == 2 and values.numel() > 0 and all(distance % _COPY_ALIGNMENT == 0 for distance in distances)


def precision(dtype: torch.dtype) -> str:
    """How fp32 products are made: exactly, or in TF32 where ``torch.set_float32_matmul_precision`` allows it."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"
