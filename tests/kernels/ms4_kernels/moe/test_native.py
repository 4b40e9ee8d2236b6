"""The compiled experts against the reference in fp64; what they save; independence of threads and of the rest of the batch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from support.quantised import fp8_weight, nvfp4_weight

from ms4_kernels.moe import ExpertLora
from ms4_kernels.moe.native import against, experts_native
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")

E, D, N, RANK = 5, 36, 20, 3  # no multiple of a vector or of a tile
ROUTINGS = {
    "spread": lambda: torch.rand(61, E).topk(3).indices,
    "one token": lambda: torch.tensor([[4, 1]]),
    "no token": lambda: torch.empty(0, 2, dtype=torch.int64),
    "several chunks of one expert": lambda: torch.full((300, 1), 3),
    "one expert twice": lambda: torch.tensor([[2, 2], [0, 2]]),
}
FACTORS = ("gate_up_a_erd", "gate_up_b_eir", "down_a_ern", "down_b_edr")


def make_inputs(ids_tk, dtype, adapters=0, trained=True):
    def normal(*shape, grad=True):
        return torch.randn(*shape).to(dtype).requires_grad_(grad)

    several = (adapters,) if adapters else ()
    pairs = [normal(*several, E, *shape) for shape in ((RANK, D), (2 * N, RANK), (RANK, N), (D, RANK))]
    stacks = normal(E, 2 * N, D, grad=trained), normal(E, D, N, grad=trained)
    return [normal(ids_tk.shape[0], D), *stacks, torch.rand(ids_tk.shape).requires_grad_(), ExpertLora(*pairs, 0.5, 0.7)]


def outputs_and_grads(function, ids_tk, inputs, **options):
    hidden_td, gate_up, down, weights_tk, lora = inputs
    out_td = function(hidden_td, gate_up, down, ids_tk, weights_tk, lora, **options)
    factors = [getattr(lora, name) for name in FACTORS] if lora else []
    wanted = [x for x in (hidden_td, gate_up, down, weights_tk, *factors) if isinstance(x, torch.Tensor) and x.requires_grad]
    return [out_td, *torch.autograd.grad((out_td * torch.linspace(-1, 1, D, dtype=out_td.dtype)).sum(), wanted)]


def widen(inputs):
    *tensors, lora = inputs
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
    factors = [getattr(lora, name).detach().double().requires_grad_() for name in FACTORS]
    return [*wide, ExpertLora(*factors, lora.gate_up_scale, lora.down_scale)]


def assert_as_exact_as_torch(actual, plain, exact):
    """At most twice the error of the same computation in torch, plus what a rounding of the result alone may cost."""
    for ours, torchs, truth in zip(actual, plain, exact, strict=True):
        error, bound = ((x.double() - truth).norm() for x in (ours, torchs))
        assert error <= 2 * bound + torch.finfo(ours.dtype).eps / 4 * truth.norm()
        assert ours.dtype == torchs.dtype


@pytest.mark.parametrize("recompute", [False, True], ids=["H kept", "H computed again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_equals_reference(routing, dtype, recompute):
    ids_tk = ROUTINGS[routing]()
    inputs = make_inputs(ids_tk, dtype)
    exact = outputs_and_grads(experts_reference, ids_tk, widen(inputs))
    plain = outputs_and_grads(experts_reference, ids_tk, inputs)
    assert_as_exact_as_torch(outputs_and_grads(experts_native, ids_tk, inputs, recompute=recompute), plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_adapters(dtype):
    ids_tk = ROUTINGS["spread"]()
    adapter_t = torch.randint(-1, 3, (61,))
    inputs = make_inputs(ids_tk, dtype, adapters=3)
    exact = outputs_and_grads(experts_reference, ids_tk, widen(inputs), adapter_t=adapter_t)
    plain = outputs_and_grads(experts_reference, ids_tk, inputs, adapter_t=adapter_t)
    actual = outputs_and_grads(experts_native, ids_tk, inputs, adapter_t=adapter_t)
    assert_as_exact_as_torch(actual, plain, exact)
    alone = outputs_and_grads(experts_native, ids_tk, inputs, adapter_t=torch.zeros_like(adapter_t))
    assert not torch.allclose(actual[0], alone[0], rtol=0.05, atol=0.05)  # control: the adapter matters
    assert not alone[-1][1:].any()  # adapters without tokens get zeros


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_equals_dequantised_to_the_bit(kind, dtype):
    make = {"fp8": fp8_weight, "nvfp4": nvfp4_weight}[kind]
    ids_tk = ROUTINGS["spread"]()
    hidden_td, _, _, weights_tk, _ = make_inputs(ids_tk, dtype)
    hidden_td = hidden_td.detach()[:, :32].contiguous().requires_grad_()
    stacks = make(E, 2 * 16, 32, groups=2), make(E, 32, 16)
    for recompute in (False, True):
        results = []
        for pair in (stacks, [stack.dequantise(dtype) for stack in stacks]):
            out_td = experts_native(hidden_td, *pair, ids_tk, weights_tk, recompute=recompute)
            results.append([out_td, *torch.autograd.grad((out_td * torch.linspace(-1, 1, 32).to(dtype)).sum(), [hidden_td, weights_tk])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_e4m3_code_is_decoded_as_torch_decodes_it():
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes.where(codes & 0x7F != 0x7F, 0).view(1, 16, 16)  # NaN would spread over sums
    weight = dataclasses.replace(fp8_weight(1, 16, 16), codes=codes)
    # One token for each column: gate and up make its activation (nearly) a unit vector, so outputs are columns of the weight.
    hidden_td = torch.eye(16)
    gate_up = torch.cat((torch.eye(16) * 64.0, torch.eye(16) / 64.0))[None]  # silu(64) = 64 in fp32
    out_td = experts_native(hidden_td, gate_up, weight, torch.zeros(16, 1, dtype=torch.int64), torch.ones(16, 1))
    assert torch.equal(out_td, weight.dequantise(torch.float32)[0].t())


def test_results_do_not_depend_on_threads_or_neighbours():
    ids_tk = torch.rand(200, E).topk(3).indices
    inputs = make_inputs(ids_tk, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_grads(experts_native, ids_tk, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    hidden_td, gate_up, down, weights_tk, lora = inputs
    part = torch.tensor([3, 77, 198])
    alone_td = experts_native(hidden_td[part], gate_up, down, ids_tk[part], weights_tk[part], lora)
    assert torch.equal(alone_td, results[0][0][part])


def saved_bytes(**options):
    ids_tk = ROUTINGS["spread"]()
    hidden_td, gate_up, down, weights_tk, _ = make_inputs(ids_tk, torch.bfloat16)
    stacks = {gate_up.data_ptr(), down.data_ptr()}
    saved: dict[tuple, torch.Tensor] = {}

    def keep(x):
        if x.data_ptr() not in stacks:
            saved[x.data_ptr(), x.shape] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        experts_native(hidden_td, gate_up, down, ids_tk, weights_tk, **options)
    return sum(x.numel() * x.element_size() for x in saved.values()) - (4 + 2 * 8) * ids_tk.numel() - 4 * E  # routing


def test_saves_input_and_preactivation_only():
    tokens, slots = ROUTINGS["spread"]().shape
    assert saved_bytes() == tokens * (2 * D + 4 * slots * N)
    assert saved_bytes(recompute=True) == tokens * 2 * D


def test_gradients_nobody_wants_are_not_made():
    ids_tk = ROUTINGS["spread"]()
    hidden_td, gate_up, down, weights_tk, lora = make_inputs(ids_tk, torch.float32, trained=False)
    made: list[torch.Size] = []
    real = torch.empty

    def empty(*shape, **options):
        out = real(*shape, **options)
        made.append(out.shape)
        return out

    out_td = experts_native(hidden_td, gate_up, down, ids_tk, weights_tk, lora)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        out_td.sum().backward()
    assert made  # control: the count sees what is made
    assert gate_up.shape not in made
    assert down.shape not in made
    assert hidden_td.grad is not None
    assert lora.down_b_edr.grad is not None


def test_experts_beyond_2_to_the_31_elements():
    stride = (1 << 31) // 2 + 5  # of the third expert: past 2^31 elements; the storage between is never touched
    storage = torch.empty(2 * stride + 2 * N * D, dtype=torch.bfloat16)
    gate_up = storage.as_strided((3, 2 * N, D), (stride, D, 1))
    plain = torch.randn(3, 2 * N, D).bfloat16()
    for expert in range(3):
        gate_up[expert] = plain[expert]
    hidden_td, down = torch.randn(9, D).bfloat16(), torch.randn(3, D, N).bfloat16()
    ids_tk, weights_tk = torch.tensor([[2]] * 8 + [[0]]), torch.ones(9, 1)
    actual = experts_native(hidden_td, gate_up, down, ids_tk, weights_tk)
    assert torch.equal(actual, experts_native(hidden_td, plain, down, ids_tk, weights_tk))


def test_what_is_served():
    hidden_td, gate_up, down = torch.randn(3, D), torch.randn(E, 2 * N, D), torch.randn(E, D, N)
    assert not against(hidden_td, gate_up, down)
    assert not against(hidden_td, fp8_weight(E, 2 * N, D), down)
    assert "not float64" in against(hidden_td.double(), gate_up, down)
    assert "contiguous" in against(hidden_td, torch.randn(E, D, 2 * N).transpose(1, 2), down)
    nowhere = torch.ones(1).to("meta")
    for meta in ((hidden_td.to("meta"), gate_up, down), (hidden_td, gate_up.to("meta"), down), (hidden_td, gate_up, down, nowhere)):
        assert "plain one in the CPU's memory" in against(*meta)


@pytest.mark.parametrize("trained", [names for count in (1, 2, 3) for names in itertools.combinations(FACTORS, count)], ids=" ".join)
def test_any_part_of_an_adapter_may_be_trained(trained):
    """An expert's rows fill three chunks, whose gradients must add up whichever of them are wanted."""
    ids_tk = torch.cat((torch.full((300, 1), 3), torch.randint(0, E, (20, 1))))
    inputs = make_inputs(ids_tk, torch.float32, trained=False)
    for name in FACTORS:
        getattr(inputs[-1], name).requires_grad_(name in trained)

    def run(function, inputs):
        *tensors, lora = inputs
        out_td = function(*tensors[:3], ids_tk, tensors[3], lora)
        return torch.autograd.grad((out_td * torch.linspace(-1, 1, D, dtype=out_td.dtype)).sum(), [getattr(lora, name) for name in trained])

    exact = run(experts_reference, widen(inputs))
    for ours, truth in zip(run(experts_native, inputs), exact, strict=True):
        assert (ours - truth).norm() <= 1e-5 * truth.norm()  # fp32, sums of 300 rows


def test_no_slots_give_zeros():
    hidden_td, gate_up, down, _, _ = make_inputs(ROUTINGS["spread"](), torch.float32)
    assert not experts_native(hidden_td, gate_up, down, torch.empty(61, 0, dtype=torch.int64), torch.empty(61, 0)).any()


def test_second_derivatives_are_refused():
    ids_tk = ROUTINGS["spread"]()
    hidden_td, gate_up, down, weights_tk, _ = make_inputs(ids_tk, torch.float32)
    out_td = experts_native(hidden_td, gate_up, down, ids_tk, weights_tk)
    (grad_td,) = torch.autograd.grad(out_td.square().sum(), hidden_td, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_td.sum().backward()
