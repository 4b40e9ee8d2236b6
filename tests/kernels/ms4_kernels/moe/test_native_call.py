"""The argument structure: as large as the C compiler makes it, tensors kept alive, grads of the right types."""

from __future__ import annotations

import ctypes
import gc
import weakref

import pytest
import torch
from support.quantised import fp8_weight

from ms4_kernels.moe.native_call import NativeCall, _Call, _Stack
from ms4_kernels.native import library
from ms4_kernels.routing.sorting import sort_by_expert

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")


def make_call(dtype=torch.float32, gate_up=None):
    hidden_td = torch.randn(5, 8, dtype=dtype)
    gate_up = torch.randn(3, 12, 8, dtype=dtype) if gate_up is None else gate_up
    parameters = [
        gate_up,
        torch.randn(3, 2, 8, dtype=dtype),
        torch.randn(3, 12, 2, dtype=dtype),
        torch.randn(3, 8, 6, dtype=dtype),
        None,
        None,
    ]
    order = sort_by_expert(torch.randint(0, 3, (5, 2)), 3)
    return NativeCall(hidden_td, torch.rand(5, 2), order, (1.0, 1.0), 0, False, parameters), parameters


def test_structures_have_the_size_of_the_compiled_ones():
    sizes = (ctypes.c_int64 * 3)()
    library().ms4_sizes(sizes)
    assert list(sizes)[:2] == [ctypes.sizeof(_Call), ctypes.sizeof(_Stack)]


def test_tensors_live_as_long_as_the_call():
    call, _ = make_call()
    out = torch.empty(5, 8)
    alive = weakref.ref(out)
    call.set(out=out)
    del out
    gc.collect()
    assert alive() is not None
    del call
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_room_for_gradients(dtype):
    call, parameters = make_call(dtype)
    grads = call.make_grads(parameters, [True, True, False, True, False, False])
    assert [None if grad is None else grad.dtype for grad in grads] == [dtype, torch.float32, None, dtype, None, None]
    assert not grads[1].any()
    call, parameters = make_call(dtype, fp8_weight(3, 12, 8))
    assert call.make_grads(parameters, [True] + [False] * 5) == [None] * 6  # a quantised stack has none


def test_what_is_not_contiguous_is_our_mistake():
    call, _ = make_call()
    with pytest.raises(AssertionError):
        call.set(out=torch.empty(8, 5).t())
