"""Slots without an expert (id -1) on every path, against the same call with an expert of weight 0 in their place.

The cases "empty slots" and "no slot filled" of ``support/experts_cases.py`` run through ``test_cpu_cases.py``, ``test_native_cases.py`` and
``triton/test_experts_cases.py``: LoRA, several adapters, quantised stacks.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support.experts_cases import poisoned
from support.triton_interpreter import interpreted

from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.moe.native import experts_native
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.moe.triton.experts import experts_triton
from ms4_kernels.native import library

E, D, N, T, K = 4, 24, 12, 19, 3
NATIVE = pytest.param("native", marks=pytest.mark.skipif(library() is None, reason="no C compiler"))
PATHS = {"reference": experts_reference, "cpu": experts_cpu, "native": experts_native, "triton": experts_triton}
TYPES = [
    ("reference", torch.float64),
    ("cpu", torch.float64),
    ("cpu", torch.bfloat16),
    ("native", torch.float32),
    ("native", torch.bfloat16),
    ("triton", torch.float32),
    ("triton", torch.bfloat16),
]
needs_compiler = pytest.mark.skipif(library() is None, reason="no C compiler")
EVERY_PATH = [pytest.param(*pair, marks=needs_compiler if pair[0] == "native" else []) for pair in TYPES]


def problem(dtype):
    generator = torch.Generator().manual_seed(3)
    sizes = ((T, D), (E, 2 * N, D), (E, D, N))
    leaves = [(torch.randn(*size, generator=generator) / size[-1] ** 0.5).to(dtype).requires_grad_() for size in sizes]
    ids_tk = torch.rand(T, E, generator=generator).topk(K).indices
    ids_tk[torch.rand(T, K, generator=generator) < 0.5] = -1
    ids_tk[:2] = -1
    wide = torch.promote_types(dtype, torch.float32)
    return leaves, ids_tk, (torch.rand(T, K, generator=generator) + 0.1).to(wide).requires_grad_()


def result(path, leaves, ids_tk, weights_tk, **options):
    """[output, gradients of hidden, stacks, weights]; what a path fails to write is nan."""
    with interpreted() if path == "triton" else nullcontext(), poisoned():
        out_td = PATHS[path](*leaves, ids_tk, weights_tk, **options)
        dout_td = torch.linspace(-1, 1, out_td.numel()).view_as(out_td).to(out_td.dtype)
        return [out_td.detach(), *torch.autograd.grad(out_td, [*leaves, weights_tk], dout_td)]


def with_weight_0(leaves, ids_tk, weights_tk):
    """The same in fp64 by calls without empty slots: some expert with weight 0."""
    wide = [leaf.detach().double().requires_grad_() for leaf in (*leaves, weights_tk)]
    is_empty_tk = ids_tk < 0
    out_td = experts_reference(*wide[:3], ids_tk.where(~is_empty_tk, 1), wide[3].masked_fill(is_empty_tk, 0.0))
    dout_td = torch.linspace(-1, 1, out_td.numel()).view_as(out_td).to(leaves[0].dtype).double()
    return [out_td.detach(), *torch.autograd.grad(out_td, wide, dout_td)]


@pytest.mark.parametrize(("path", "dtype"), EVERY_PATH)
def test_an_empty_slot_is_one_of_weight_0(path, dtype):
    leaves, ids_tk, weights_tk = problem(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]  # the order of sums; two roundings
    expected = with_weight_0(leaves, ids_tk, weights_tk)
    actual = result(path, leaves, ids_tk, weights_tk)
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()
    assert not actual[0][:2].any()
    assert not actual[-1][ids_tk < 0].any()
    wrong = result(path, leaves, ids_tk.where(ids_tk >= 0, 1), weights_tk)  # control: taken for an expert, it shows
    assert (wrong[0].double() - expected[0]).abs().max() > 0.05 * expected[0].abs().max()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("path", "dtype"), EVERY_PATH[1:])
def test_the_number_of_filled_slots_changes_no_bit_and_saves_room(path, dtype, recompute):
    leaves, ids_tk, weights_tk = problem(dtype)
    num_rows = int((ids_tk >= 0).sum())
    expected = result(path, leaves, ids_tk, weights_tk)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: shapes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
        actual = result(path, leaves, ids_tk, weights_tk, recompute=recompute, num_rows=num_rows)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    assert ((num_rows, 2 * N) in shapes) is not recompute
    assert (T * K, 2 * N) not in shapes


@pytest.mark.parametrize("num_rows", [0, None])
@pytest.mark.parametrize(("path", "dtype"), EVERY_PATH[1:])
def test_nothing_but_empty_slots(path, dtype, num_rows):
    leaves, ids_tk, weights_tk = problem(dtype)
    actual = result(path, leaves, torch.full_like(ids_tk, -1), weights_tk, num_rows=num_rows)
    assert not any(tensor.any() for tensor in actual)


def test_an_empty_slot_costs_no_product():
    leaves, ids_tk, weights_tk = problem(torch.float32)
    with interpreted() as launches:
        experts_triton(*leaves, torch.full_like(ids_tk, -1), weights_tk)
        empty = launches.dot_flops()
        experts_triton(*leaves, ids_tk, weights_tk)
        some = launches.dot_flops() - empty
    assert empty == 0
    assert some > 0


@pytest.mark.parametrize("path", ["cpu", NATIVE])
def test_a_wrong_number_of_filled_slots_is_refused(path):
    leaves, ids_tk, weights_tk = problem(torch.float32)
    with pytest.raises(ValueError, match="slots have an expert, not 3"):
        PATHS[path](*leaves, ids_tk, weights_tk, num_rows=3)
