"""The arguments of the compiled kernels, field by field as ``ms4_kernels/native/experts.c`` declares them.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_native_call.py``.

Shape suffixes: t tokens, k experts per token, e experts, r sorted rows, d hidden, i = 2n.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ms4_kernels.moe.arguments import Parameter
from ms4_kernels.native import library
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight, QuantisedWeight
from ms4_kernels.routing.sorting import ExpertOrder

_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
_FP32, _BF16, _FP8, _NVFP4 = range(4)


class _Stack(ctypes.Structure):
    _fields_ = [
        ("kind", _INT),
        ("groups", _INT),
        ("data", _POINTER),
        ("expert_stride", ctypes.c_int64),
        ("scale", _POINTER),
        ("block_scale", _POINTER),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("tokens", "slots", "experts", "adapters", "hidden", "width")),
        *((name, _INT) for name in ("rank_up", "rank_down", "threads", "half", "recompute")),
        ("scale_up", _FLOAT),
        ("scale_down", _FLOAT),
        *((name, _POINTER) for name in ("x", "pair", "row", "ends", "routing")),
        ("gate_up", _Stack),
        ("down", _Stack),
        *((name, _POINTER) for name in ("a_up", "b_up", "a_down", "b_down", "h", "rows_out", "out", "dout", "drouting")),
        *((name, _POINTER) for name in ("dgate_up", "ddown", "da_up", "db_up", "da_down", "db_down", "dgate_up_half", "ddown_half")),
    ]


class NativeCall:
    """One call of the kernels; keeps every tensor it points to alive.

    Args:
        hidden_td: fp32 or bf16 [T, d].
        weights_tk: routing weights.
        order: the sorted rows.
        lora_scales: of the gate-up and the down pair.
        num_adapters: L of low-rank stacks [L, E, ...]; 0 for [E, ...].
        recompute: compute H anew in the backward pass.
        parameters: gate_up, its A and B, down, its A and B.
    """

    def __init__(
        self,
        hidden_td: Tensor,
        weights_tk: Tensor,
        order: ExpertOrder,
        lora_scales: tuple[float, float],
        num_adapters: int,
        recompute: bool,
        parameters: Sequence[Parameter],
    ) -> None:
        gate_up, a_up, b_up, down, a_down, b_down = parameters
        assert gate_up is not None
        assert down is not None
        self._half = hidden_td.dtype == torch.bfloat16
        self._kept: list[Tensor] = []
        ends = order.ends_e if order.segment_ends_s is None else order.segment_ends_s
        self._call = _Call(
            tokens=hidden_td.shape[0],
            slots=weights_tk.shape[1],
            experts=gate_up.shape[0],
            adapters=num_adapters,
            hidden=hidden_td.shape[1],
            width=down.shape[2],
            rank_up=_rank(a_up),
            rank_down=_rank(a_down),
            threads=torch.get_num_threads(),
            half=int(self._half),
            recompute=int(recompute),
            scale_up=lora_scales[0],
            scale_down=lora_scales[1],
            x=self._fp32(hidden_td),
            pair=self._keep(order.pair_r),
            row=self._keep(order.row_tk),
            ends=self._keep(ends),
            routing=self._fp32(weights_tk),
            gate_up=self._stack(gate_up),
            down=self._stack(down),
            **{name: self._fp32(part) for name, part in (("a_up", a_up), ("b_up", b_up), ("a_down", a_down), ("b_down", b_down))},
        )

    def set(self, **tensors: Tensor | None) -> None:
        """Fields that are contiguous tensors of the kernels' own types; None leaves one out."""
        for name, tensor in tensors.items():
            setattr(self._call, name, None if tensor is None else self._keep(tensor))

    def make_grads(self, parameters: Sequence[Parameter], needed: Sequence[bool]) -> list[Tensor | None]:
        """Room for the gradients that are needed: those of stacks in the stacks' type (in fp32 they would be twice as large), those of
        low-rank pairs as fp32 zeros, because an expert, or an adapter, may get no rows."""
        grads: list[Tensor | None] = []
        names = ("dgate_up", "da_up", "db_up", "ddown", "da_down", "db_down")
        for name, parameter, wanted in zip(names, parameters, needed, strict=True):
            grad = None
            if wanted and isinstance(parameter, Tensor):
                is_stack = name in ("dgate_up", "ddown")
                grad = torch.empty(parameter.shape, dtype=parameter.dtype) if is_stack else torch.zeros(parameter.shape)
                self.set(**{f"{name}_half" if is_stack and self._half else name: grad})
            grads.append(grad)
        return grads

    def forward(self) -> None:
        """Compute rows_out and out, and h where it is set.

        Raises:
            MemoryError: no room for the scratch of the threads.
        """
        self._run("ms4_experts_forward")

    def backward(self) -> None:
        """Compute what is set; see :meth:`forward`."""
        self._run("ms4_experts_backward")

    def _run(self, name: str) -> None:
        loaded = library()
        assert loaded is not None
        if getattr(loaded, name)(ctypes.byref(self._call)):
            raise MemoryError("no memory for the scratch of the compiled experts")

    def _keep(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _fp32(self, tensor: Parameter) -> int | None:
        return self._keep(tensor.detach().float().contiguous()) if isinstance(tensor, Tensor) else None

    def _stack(self, stack: Tensor | QuantisedWeight) -> _Stack:
        if isinstance(stack, Tensor):
            self._kept.append(stack)
            return _Stack(_BF16 if self._half else _FP32, 1, stack.data_ptr(), stack.stride(0), None, None)
        codes = self._part(stack.codes)
        stride = stack.codes.shape[1] * stack.codes.shape[2]
        if isinstance(stack, Fp8Weight):
            return _Stack(_FP8, stack.scale.shape[-1], codes, stride, self._part(stack.scale), None)
        assert isinstance(stack, Nvfp4Weight)
        return _Stack(_NVFP4, stack.global_scale.shape[-1], codes, stride, self._part(stack.global_scale), self._part(stack.block_scale))

    def _part(self, part: Tensor) -> int:
        return self._keep(part.contiguous())


def _rank(a: Parameter) -> int:
    return 0 if a is None else a.shape[-2]
