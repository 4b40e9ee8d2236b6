"""Matrix products whose rows do not depend on each other, for ``batch_invariant()``.

On a GPU: one Triton kernel with one tile and the terms added in their order. On a CPU: the compiled products, which promise as much; bf16
and fp16 are widened to fp32 for them and rounded once. Where they do not serve (fp64, no compiler) each row is a product of its own.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_products.py``.

Shape suffixes: z matrices of a batch, m rows, k terms of the sum, n columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms4_kernels import dispatch
from ms4_kernels.native.library import library, product, readable
from ms4_kernels.native.matmul import product_nt

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mm(func: Any, a_mk: Tensor, b_kn: Tensor, *, out: Tensor | None = None) -> Tensor:
    """In place of ``aten.mm``."""
    return _given(_multiply(a_mk, b_kn), out)


def bmm(func: Any, a_zmk: Tensor, b_zkn: Tensor, *, out: Tensor | None = None) -> Tensor:
    """In place of ``aten.bmm``."""
    return _given(_multiply_each(a_zmk, b_zkn), out)


def addmm(func: Any, added: Tensor, a_mk: Tensor, b_kn: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """In place of ``aten.addmm`` and ``addmm_``; ``added`` broadcasts to [M, N]."""
    return _given(_sum(added, _multiply(a_mk, b_kn), beta, alpha), _changed(func, added))


def baddbmm(func: Any, added: Tensor, a_zmk: Tensor, b_zkn: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """In place of ``aten.baddbmm`` and ``baddbmm_``."""
    return _given(_sum(added, _multiply_each(a_zmk, b_zkn), beta, alpha), _changed(func, added))


def mv(func: Any, a_mk: Tensor, b_k: Tensor) -> Tensor:
    """In place of ``aten.mv``."""
    return _multiply(a_mk, b_k[:, None])[:, 0]


def _changed(func: Any, added: Tensor) -> Tensor | None:
    """What an operation writes to: its first argument if its name ends so."""
    return added if func.overloadpacket.__name__.endswith("_") else None


def _given(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _sum(added: Tensor, found: Tensor, beta: float, alpha: float) -> Tensor:
    """Products by one, and a single sum, are rounded once each wherever they lie; a fused form might not be everywhere."""
    if alpha != 1:
        found = found * alpha
    if beta == 0:
        return found  # whatever is in the other, NaN too
    return (added if beta == 1 else added * beta) + found


def _multiply_each(a_zmk: Tensor, b_zkn: Tensor) -> Tensor:
    if dispatch.runs_triton(a_zmk.device) and a_zmk.dtype in _TRITON_DTYPES:
        from ms4_kernels.invariant.gemm_triton import multiply_triton  # needs Triton

        return multiply_triton(a_zmk, b_zkn)
    found = [_multiply(a_mk, b_kn) for a_mk, b_kn in zip(a_zmk.unbind(), b_zkn.unbind(), strict=True)]
    return torch.stack(found) if found else a_zmk.new_empty(0, a_zmk.shape[1], b_zkn.shape[2])


def _multiply(a_mk: Tensor, b_kn: Tensor) -> Tensor:
    if dispatch.runs_triton(a_mk.device) and a_mk.dtype in _TRITON_DTYPES:
        return _multiply_each(a_mk[None], b_kn[None])[0]
    if a_mk.dtype in (torch.bfloat16, torch.float16):
        return _multiply(a_mk.float(), b_kn.float()).to(a_mk.dtype)
    if a_mk.dtype == torch.float32 and readable(a_mk, b_kn) and library() is not None:
        return _compiled(a_mk, b_kn)
    if not a_mk.shape[0]:
        return a_mk.new_empty(0, b_kn.shape[1])
    # Copied, so that every product of one shape starts at an address that is aligned alike.
    return torch.cat([torch.mm(row_1k.clone(), b_kn) for row_1k in a_mk.split(1)])


def _compiled(a_mk: Tensor, b_kn: Tensor) -> Tensor:
    """The choice between the two forms rests on the right side alone, which is a weight, or belongs to one sequence."""
    loaded = library()
    assert loaded is not None
    if b_kn.stride(1) != 1 and b_kn.stride(0) == 1:
        return product_nt(a_mk.contiguous(), b_kn.t().contiguous())
    out_mn = torch.empty(a_mk.shape[0], b_kn.shape[1])
    product(loaded, a_mk, b_kn if b_kn.stride(1) == 1 or b_kn.shape[1] == 1 else b_kn.contiguous(), out_mn)
    return out_mn
