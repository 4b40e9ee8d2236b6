"""What Triton's interpreter computes wrongly or not at all, mended: bfloat16, float8, rounding, tensor-core precision, int32 overflow.

The stock interpreter keeps bfloat16 as its bits in uint16, and multiplies, adds and compares those bits; it cuts float32 to bfloat16
instead of rounding to nearest even. ``repairs`` lists the replacements, which ``support.triton_interpreter`` puts in place and takes out.
Exercise it: ``pytest tests/test_triton_interpreter.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import min_dot_size
from triton.runtime import interpreter

__all__ = ["narrow", "repairs", "widen"]

_FP8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
_TABLES = {name: torch.arange(256, dtype=torch.uint8).view(kind).float().numpy() for name, kind in _FP8.items()}
_NARROW = (tl.bfloat16, *_FP8)  # types whose numpy array holds bits, not numbers
_TF32_BITS = np.uint32(0xFFFFE000)  # sign, 8 bits of exponent, the upper 10 of 23 bits of mantissa
_Handle = interpreter.TensorHandle


def widen(data: np.ndarray, kind: tl.dtype) -> np.ndarray:
    """Numbers as numpy can compute with them: bfloat16 and float8 bits become float32, other types stay."""
    if kind == tl.bfloat16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return _TABLES[kind][data] if kind in _FP8 else data


def narrow(data: np.ndarray, kind: tl.dtype) -> np.ndarray:
    """Numbers -> the bits of bfloat16 or float8, to nearest even as GPUs do; float8 saturates, as PTX's ``cvt.satfinite`` does."""
    data = np.ascontiguousarray(data, dtype=np.float32)
    if kind == tl.bfloat16:
        bits = data.view(np.uint32)
        rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        return np.where(np.isnan(data), np.uint16(0x7FFF), rounded)  # the canonical NaN of PTX
    most = torch.finfo(_FP8[kind]).max
    return torch.from_numpy(data.copy()).clamp(-most, most).to(_FP8[kind]).view(torch.uint8).numpy()


def repairs(count_operations: Callable[[int], None], check: Callable[[], bool]) -> Iterator[tuple[Any, str, Any]]:
    """The replacements: (class or module, attribute, function).

    Args:
        count_operations: told the floating-point operations of each ``tl.dot``, 2 * M * N * K.
        check: whether int32 overflow raises.

    Raises (inside a kernel):
        OverflowError: a signed sum, difference or product of 16 or 32 bits does not fit.
    """
    builder = interpreter.InterpreterBuilder
    yield builder, "binary_op", _binary_op
    yield builder, "ternary_op", _ternary_op
    yield builder, "unary_op", _unary_op
    yield builder, "create_fma", lambda self, x, y, z: _ternary_op(self, x, y, z, lambda a, b, c: a * b + c)
    yield builder, "cast_impl", _cast(builder.cast_impl)
    yield builder, "create_fp_to_fp", _fp_to_fp(builder.create_fp_to_fp)
    yield builder, "get_bf16", lambda self, value: _Handle(narrow(np.array([value]), tl.bfloat16), tl.bfloat16)
    yield builder, "create_dot", _dot(count_operations)
    yield interpreter.ReduceOps, "apply_impl", _widened(interpreter.ReduceOps.apply_impl)
    yield interpreter.ScanOps, "apply_impl", _widened(interpreter.ScanOps.apply_impl)
    # On the interpreter's own instance: the compiler shares the class.
    yield interpreter.interpreter_semantic, "binary_op_sanitize_overflow_impl", _overflow_check(check)
    yield (
        interpreter.interpreter_builder,
        "options",
        dataclasses.replace(interpreter.interpreter_builder.options, debug=True),
    )  # device_assert
    # The real compiler refuses smaller tiles; the interpreter alone would take them.
    codegen = {**interpreter.interpreter_builder.codegen_fns, "min_dot_size": min_dot_size(GPUTarget("cuda", 90, 32))}
    yield interpreter.interpreter_builder, "codegen_fns", codegen


def _packed(output: np.ndarray, kind: tl.dtype) -> Any:
    """A handle of the result; that of a comparison is a truth value, whatever was compared."""
    if output.dtype == np.bool_:
        return _Handle(output, tl.int1)
    if kind in _NARROW:
        output = narrow(output, kind)
    elif output.dtype.itemsize * 8 > max(8, kind.primitive_bitwidth):
        output = output.astype(interpreter._get_np_dtype(kind))
    return _Handle(output, kind)


def _binary_op(self: Any, lhs: Any, rhs: Any, op: Callable) -> Any:
    return _packed(op(widen(lhs.data, lhs.dtype.scalar), widen(rhs.data, rhs.dtype.scalar)), lhs.dtype.scalar)


def _ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Callable) -> Any:
    kind = other.dtype.scalar
    if op is np.where:  # a choice moves bits and rounds nothing
        return _Handle(op(lhs.data, rhs.data, other.data), kind)
    return _packed(op(*(widen(handle.data, handle.dtype.scalar) for handle in (lhs, rhs, other))), kind)


def _unary_op(self: Any, arg: Any, op: Callable) -> Any:
    return _packed(op(widen(arg.data, arg.dtype.scalar)), arg.dtype.scalar)


def _cast(stock: Callable) -> Callable:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source not in _NARROW and target not in _NARROW:
            return stock(self, src, dst_type)
        data = widen(src.data, source)
        return _Handle(narrow(data, target) if target in _NARROW else data.astype(interpreter._get_np_dtype(target)), target)

    return cast_impl


def _fp_to_fp(stock: Callable) -> Callable:
    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        known = all(kind in _NARROW or kind in (tl.float16, tl.float32, tl.float64) for kind in (source, target))
        if not known or rounding_mode == ir.ROUNDING_MODE.RTZ:
            return stock(self, src, dst_type, rounding_mode)
        return self.cast_impl(src, dst_type)

    return create_fp_to_fp


def _dot(count_operations: Callable[[int], None]) -> Callable:
    """``tl.dot`` that adds up in float32, as tensor cores do; float32 operands lose the bits that TF32 lacks unless "ieee" is asked for."""

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        left, right = widen(a.data, a.dtype.scalar), widen(b.data, b.dtype.scalar)
        count_operations(2 * left.size * right.shape[-1])
        if left.dtype == np.float32 and a.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            left, right = ((x.view(np.uint32) & _TF32_BITS).view(np.float32) for x in (left, right))
        at_least = np.float32 if left.dtype == np.float16 else np.int32 if left.dtype.kind in "iu" else left.dtype
        total = np.matmul(left.astype(at_least, copy=False), right.astype(at_least, copy=False)) + d.data
        return _Handle(total.astype(d.data.dtype, copy=False), d.dtype.scalar)

    return create_dot


def _widened(stock: Callable) -> Callable:
    """Reductions and scans of bfloat16: in float32, rounded once."""

    def up(self: Any, x: Any) -> Any:
        return self.to_tensor(widen(x.handle.data, x.dtype), tl.float32) if x.dtype == tl.bfloat16 else x

    def down(self: Any, x: Any, kind: tl.dtype) -> Any:
        if kind != tl.bfloat16 or x.dtype != tl.float32:
            return x
        data = narrow(x.handle.data, kind)
        return self.to_tensor(data if x.type.is_block() else data.reshape(()), kind)

    def apply_impl(self: Any, inputs: Any) -> Any:
        if (
            hasattr(self, "keep_dims") and self.combine_fn is tl.standard._xor_combine
        ):  # sorting; the stock way is a Python call per element
            return [self.to_tensor(np.bitwise_xor.reduce(x.handle.data, self.axis, keepdims=self.keep_dims), x.dtype) for x in inputs]
        if not any(x.dtype == tl.bfloat16 for x in inputs):
            return stock(self, inputs)
        results = stock(self, tuple(up(self, x) for x in inputs))
        results = results if isinstance(results, list | tuple) else [results]
        return [down(self, x, before.dtype) for x, before in zip(results, inputs, strict=False)]

    return apply_impl


def _overflow_check(check: Callable[[], bool]) -> Callable:
    def binary_op_sanitize_overflow_impl(lhs: Any, rhs: Any, binary_op: Callable) -> None:
        if not lhs.type.scalar.is_int_signed() or not 16 <= lhs.type.scalar.int_bitwidth < 64 or not check():
            return  # unsigned numbers wrap by definition
        op = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
        exact = op(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
        least, most = lhs.type.scalar.get_int_min_value(), lhs.type.scalar.get_int_max_value()
        if exact.size and (exact.max() > most or exact.min() < least):
            extreme = exact.max() if exact.max() > most else exact.min()
            raise OverflowError(f"{binary_op.__name__} gives {extreme}, which {lhs.type.scalar} does not hold; widen to tl.int64 first")

    return binary_op_sanitize_overflow_impl
