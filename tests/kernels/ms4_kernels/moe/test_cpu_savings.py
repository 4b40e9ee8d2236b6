"""What the experts operation does not do: keep more than input and pre-activation, or compute gradients nobody asked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.moe import ExpertLora
from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.moe.reference import experts_reference

T, D, N, E, K = 12, 24, 16, 8, 4  # no expert has as many rows as D, N or 2N, so that shapes tell the products apart


def make_inputs(dtype=torch.bfloat16):
    ids_tk = torch.rand(T, E).topk(K).indices
    stacks = (torch.randn(E, 2 * N, D, dtype=dtype), torch.randn(E, D, N, dtype=dtype))
    return torch.randn(T, D, dtype=dtype, requires_grad=True), *stacks, ids_tk, torch.rand(T, K, requires_grad=True)


def saved_bytes(function, *inputs):
    """Return the bytes that autograd keeps: (floating activations, everything but the stacks)."""
    stacks = {inputs[1].data_ptr(), inputs[2].data_ptr()}
    saved: dict[tuple, torch.Tensor] = {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in stacks:
            saved[x.data_ptr(), x.shape] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function(*inputs)
    sizes = [(x.dtype, x.numel() * x.element_size()) for x in saved.values()]
    return sum(size for dtype, size in sizes if dtype == torch.bfloat16), sum(size for _, size in sizes)


def test_saves_input_and_preactivation_only():
    inputs = make_inputs()
    activations, everything = saved_bytes(experts_cpu, *inputs)
    indices_and_weights = 2 * 8 * T * K + 4 * E + 4 * T * K
    assert activations == T * (2 * D + 4 * K * N)
    assert everything == activations + indices_and_weights
    assert saved_bytes(experts_reference, *inputs)[0] > 2 * activations  # the measurement sees what plain autograd keeps


class CountProducts(TorchDispatchMode):
    """Counts matrix products by the shape of their result."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm:
            self.shapes.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("trained", [(), ("gate_up",), ("down",), ("gate_up", "down")])
def test_frozen_stacks_cost_nothing(trained):
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = make_inputs(torch.float32)
    gate_up_eid.requires_grad_("gate_up" in trained)
    down_edn.requires_grad_("down" in trained)
    with CountProducts() as products:
        experts_cpu(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk).sum().backward()
    busy = len(ids_tk.unique())
    assert len(products.shapes) == busy * (4 + len(trained))
    assert products.shapes.count((2 * N, D)) == busy * ("gate_up" in trained)
    assert products.shapes.count((D, N)) == busy * ("down" in trained)
    assert (gate_up_eid.grad is not None, down_edn.grad is not None) == ("gate_up" in trained, "down" in trained)


def test_unneeded_input_and_router_gradients_are_skipped():
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = make_inputs(torch.float32)
    gate_up_eid.requires_grad_()
    with CountProducts() as products:
        experts_cpu(hidden_td.detach(), gate_up_eid, down_edn, ids_tk, weights_tk.detach()).sum().backward()
    assert len(products.shapes) == len(ids_tk.unique()) * 4  # two forward, one to the activation, one for the stack


def test_lora_never_forms_the_product_of_its_factors():
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = make_inputs(torch.float32)
    rank = 2
    shapes = ((E, rank, D), (E, 2 * N, rank), (E, rank, N), (E, D, rank))
    lora = ExpertLora(*(torch.randn(shape, requires_grad=True) for shape in shapes))
    with CountProducts() as products:
        experts_cpu(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, lora).sum().backward()
    assert (2 * N, D) not in products.shapes
    assert (D, N) not in products.shapes
    assert all(factor.grad is not None for factor in (lora.gate_up_a_erd, lora.gate_up_b_eir, lora.down_a_ern, lora.down_b_edr))
