"""What the Triton experts do not do: keep more than input and pre-activation, launch what nobody asked for, form the product B A.

Memory is measured on the tensors that are alive, launches are counted by the interpreter.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter

import pytest
import torch
from support.experts_cases import BF16, FACTORS, Case, Inputs, make, run
from support.quantised import LiveMatrices
from support.triton_interpreter import interpreted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.moe.triton.experts import experts_triton

PLAIN = Case("empty edges", BF16, "dense", width=64, expert_width=32)
LORA = dataclasses.replace(PLAIN, lora="both", rank=8)
ONE = dataclasses.replace(PLAIN, routing="one row")  # enough to count launches on
ONE_LORA = dataclasses.replace(LORA, routing="one row")


def arguments(inputs: Inputs):
    return inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.expert_ids_tk, inputs.weights_tk, inputs.lora


class NewStorages(TorchDispatchMode):
    """The bytes of storages made under it and still alive, split into those of floating tensors and the rest."""

    def __init__(self):
        super().__init__()
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in before | self._alive.keys():
                storage = x.untyped_storage()
                self._alive[storage._cdata] = (x.is_floating_point(), storage.nbytes())
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        return out

    def alive(self):
        gc.collect()
        kinds = list(self._alive.values())
        return sum(size for floating, size in kinds if floating), sum(size for floating, size in kinds if not floating)


def alive_after_forward(case, function=experts_triton, **options):
    """(floating bytes beyond the output, other bytes) that live between forward and backward, and did not before."""
    inputs = make(case)
    with interpreted(check=False), NewStorages() as storages:
        out_td = function(*arguments(inputs), **options)
        floating, other = storages.alive()
    return floating - out_td.nbytes, other


@pytest.mark.parametrize("case", [PLAIN, LORA, dataclasses.replace(LORA, trained=True), dataclasses.replace(LORA, stacks="fp8")], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_only_the_preactivation_outlives_the_forward(case, recompute):
    floating, other = alive_after_forward(case, recompute=recompute)
    tokens, top_k = make(case).expert_ids_tk.shape
    assert floating == (0 if recompute else 4 * top_k * case.expert_width * tokens)
    # Routing: two int64 orders of the pairs, int32 ends and three int32 lists of tiles, at most one tile for each row.
    assert other <= tokens * top_k * (8 + 8 + 12) + 4 * 8


def test_control_the_measure_sees_what_autograd_keeps():
    tokens, top_k = make(PLAIN).expert_ids_tk.shape
    floating, _ = alive_after_forward(PLAIN, experts_reference)
    assert floating > 2 * 4 * top_k * PLAIN.expert_width * tokens


def saved_bytes(case, **options):
    """Bytes in bf16 that autograd was given to keep, without the parameters: input and pre-activation."""
    inputs = make(case)
    own = {x.data_ptr() for x in inputs.wanted().values()} | {x.data_ptr() for x in (inputs.gate_up_eid, inputs.down_edn)}
    own -= {inputs.hidden_td.data_ptr()}
    kept = {}

    def keep(x):
        if x.dtype == BF16 and x.data_ptr() not in own:
            kept[x.data_ptr(), x.shape] = x.nbytes
        return x

    with interpreted(check=False), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out_td = experts_triton(*arguments(inputs), **options)
    assert not [x for x in tree_leaves(list(vars(out_td.grad_fn).values())) if isinstance(x, torch.Tensor) and x.data_ptr() not in own]
    return sum(kept.values())


@pytest.mark.parametrize("case", [PLAIN, LORA], ids=str)
def test_saved_bytes_for_each_token(case):
    tokens, top_k = make(case).expert_ids_tk.shape
    assert saved_bytes(case) == tokens * (2 * case.width + 4 * top_k * case.expert_width)
    assert saved_bytes(case, recompute=True) == tokens * 2 * case.width


ROUTING = {"count_kernel", "place_kernel", "scan_kernel", "tiles_kernel"}
"""Kernels of the routing room, which sort and cut the rows."""


def launched(inputs: Inputs, **options):
    """Launches by the name of the kernel: (forward, forward and backward)."""
    with interpreted(check=False) as launches:
        with torch.no_grad():
            experts_triton(*arguments(inputs), **options)
        forward = Counter(launch.kernel for launch in launches if launch.kernel not in ROUTING)
        launches.clear()
        run(experts_triton, inputs, **options)
        return forward, Counter(launch.kernel for launch in launches if launch.kernel not in ROUTING)


def wanting(inputs: Inputs, *names: str) -> Inputs:
    """The same numbers, of which those named want a gradient."""

    def fresh(x, name):
        return x.detach().clone().requires_grad_(name in names) if isinstance(x, torch.Tensor) else x

    lora = inputs.lora and dataclasses.replace(inputs.lora, **{name: fresh(getattr(inputs.lora, name), name) for name in FACTORS})
    changed = {name: fresh(getattr(inputs, name), name) for name in ("hidden_td", "gate_up_eid", "down_edn", "weights_tk")}
    return dataclasses.replace(inputs, lora=lora, **changed)


def test_frozen_stacks_launch_no_gram():
    forward, both = launched(make(ONE))
    assert forward == {"up_kernel": 1, "grouped_kernel": 1, "combine_kernel": 1}
    assert both == {"up_kernel": 1, "grouped_kernel": 2, "combine_kernel": 2, "dh_kernel": 1}
    assert launched(make(ONE), recompute=True)[1]["up_kernel"] == 2


@pytest.mark.parametrize("trained", [("gate_up_eid",), ("down_edn",), ("gate_up_eid", "down_edn")], ids=" and ".join)
def test_each_trained_stack_costs_one_gram(trained):
    _, both = launched(wanting(make(ONE), "hidden_td", "weights_tk", *trained))
    assert both["gram_kernel"] == len(trained)


@pytest.mark.parametrize("factor", FACTORS)
def test_each_lora_factor_costs_one_gram(factor):
    _, both = launched(wanting(make(ONE_LORA), "hidden_td", "weights_tk", factor))
    assert both["gram_kernel"] == 1


def test_all_lora_factors_cost_one_gram_each():
    _, both = launched(make(ONE_LORA))
    assert both["gram_kernel"] == len(FACTORS)


def test_input_gradient_is_skipped_where_nobody_wants_it():
    _, both = launched(wanting(make(ONE), "gate_up_eid"))
    assert both == {"up_kernel": 1, "grouped_kernel": 1, "combine_kernel": 1, "dh_kernel": 1, "gram_kernel": 1}
    _, both = launched(wanting(make(ONE), "down_edn"))
    assert both["grouped_kernel"] == 1


def test_lora_never_forms_the_product_of_its_factors():
    """No tensor is made as large as one expert's product or all of them; kernels can only write to tensors that were made for them."""
    case = dataclasses.replace(ONE_LORA, width=96, expert_width=48)  # with one row nothing else is so large
    inputs = make(case)
    num_experts, one = inputs.gate_up_eid.shape[0], case.width * case.expert_width
    sizes = [factor * one for factor in (1, 2, num_experts, 2 * num_experts)]
    with interpreted(check=False), LiveMatrices(*sizes) as live:
        run(experts_triton, inputs)
    assert live.made == 0
    lora = inputs.lora
    assert isinstance(lora, ExpertLora)
    with LiveMatrices(*sizes) as live:  # negative control: the count sees a product that is formed
        _product = lora.gate_up_b_eir @ lora.gate_up_a_erd
    assert live.made == 1
