"""The Triton experts on a CUDA device: numbers, saved bytes and peak memory, determinism, no waiting of the host, capture in a graph.

Judged against the reference in fp64 on the same device; the bar is the reference in the type of the call there. ``make test-gpu`` runs it.

Shape suffixes: t tokens, k experts per token, d hidden, n expert width.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import gpu
from support.experts_cases import BF16, CASES, FACTORS, FP32, Case, Inputs, make, reference, run
from support.gpu import differing, moved_inputs, needs_gpu, no_host_wait, poisoned, worse_than_torch

from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.moe.triton.experts import experts_triton

pytestmark = needs_gpu

RELEASE_WIDTHS = [
    Case("128 rows", BF16, "dense", "both", 16, trained=True, width=4096, expert_width=2048),
    Case("128 rows", BF16, "fp8", "both", 16, width=4096, expert_width=2048),
    Case("128 rows", BF16, "nvfp4", "both", 128, width=4096, expert_width=2048),
    Case("256 rows", BF16, "dense", "both", 16, trained=True, adapters=3, width=4096, expert_width=2048),
    Case("256 rows", BF16, "fp8 two groups", width=4096, expert_width=2048),
    Case("64 rows", FP32, "dense", "both", 16, trained=True, width=4096, expert_width=2048),
    Case("one row", BF16, "dense", "both", 16, trained=True, width=4096, expert_width=2048),
]
WIDE = Case("256 rows", BF16, "dense", "both", 16, trained=True, width=1024, expert_width=512)
REPEATED = [
    WIDE,
    dataclasses.replace(WIDE, adapters=2),
    dataclasses.replace(WIDE, trained=False, stacks="nvfp4"),
    dataclasses.replace(WIDE, dtype=FP32, routing="release", width=256, expert_width=128),
]


def arguments(inputs: Inputs):
    return inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.expert_ids_tk, inputs.weights_tk, inputs.lora


def parameters(inputs: Inputs):
    stacks = {name: x for name in ("gate_up_eid", "down_edn") if isinstance(x := getattr(inputs, name), torch.Tensor)}
    return stacks | {name: getattr(inputs.lora, name) for name in FACTORS if inputs.lora}


def routing_bytes(inputs: Inputs):
    """Saved beside X and H: routing weights; the orders of the pairs both ways, int64; the ends of the experts and of the pairs out of
    range, int32."""
    pairs = inputs.expert_ids_tk.numel()
    return {"floating": 4 * pairs, "other": 16 * pairs + 4 * (inputs.gate_up_eid.shape[0] + 1)}


@pytest.mark.parametrize("case", [*CASES, *RELEASE_WIDTHS], ids=str)
def test_error_at_most_twice_that_of_plain_torch(case):
    inputs = moved_inputs(make(case))
    plain, exact = run(reference, inputs), run(reference, inputs.in_fp64())
    with poisoned():
        got = run(experts_triton, inputs)
    assert worse_than_torch(got, plain, exact, case.dtype) == []


@pytest.mark.parametrize("case", REPEATED, ids=str)
def test_two_runs_and_recomputing_agree_to_the_bit(case):
    inputs = moved_inputs(make(case))
    first = run(experts_triton, inputs)
    assert differing(first, run(experts_triton, inputs)) == []
    assert differing(first, run(experts_triton, inputs, recompute=True)) == []


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", [WIDE, dataclasses.replace(WIDE, trained=False, stacks="fp8")], ids=str)
def test_saved_are_input_preactivation_and_routing_to_the_byte(case, recompute):
    inputs = moved_inputs(make(case))
    stacks = (x for x in (inputs.gate_up_eid, inputs.down_edn) if not isinstance(x, torch.Tensor))
    codes = {f"part {index}": part for index, part in enumerate(part for stack in stacks for part in stack.tensors)}
    saved = gpu.saved_bytes(lambda: experts_triton(*arguments(inputs), recompute=recompute), parameters(inputs) | codes)
    tokens, top_k = inputs.expert_ids_tk.shape
    routing = routing_bytes(inputs)
    per_token = 2 * case.width + (0 if recompute else 4 * top_k * case.expert_width)
    assert saved == {"floating": tokens * per_token + routing["floating"], "other": routing["other"]}


def large():
    """A frozen layer's call with tensors of tens of MiB, beside which the allocator's leftovers of up to 1 MiB are small."""
    tokens, experts, top_k, d, n = 4096, 8, 4, 2048, 1024

    def normal(*shape):
        return torch.randn(shape, dtype=BF16, device=gpu.DEVICE)

    ids_tk = torch.rand(tokens, experts, device=gpu.DEVICE).topk(top_k).indices
    weights_tk = torch.rand(tokens, top_k, device=gpu.DEVICE).requires_grad_()
    stacks = normal(experts, 2 * n, d), normal(experts, d, n)
    return Inputs(normal(tokens, d).requires_grad_(), *stacks, ids_tk, weights_tk, None, None, normal(tokens, d))


def test_device_memory_between_and_during_the_passes():
    """Allocated between the passes: H, routing, the output. At the peak: H, A and Y forward; H, dH, its rows and gradients backward."""
    inputs = large()
    (tokens, top_k), (_, d, n) = inputs.expert_ids_tk.shape, inputs.down_edn.shape
    h_bytes, y_bytes, x_bytes = 4 * tokens * top_k * n, 2 * tokens * top_k * d, 2 * tokens * d
    run(experts_triton, inputs)  # compiled
    slack = 8 << 20  # tile lists, sums of rows, and up to 1 MiB for each tensor that the allocator does not split off
    before = torch.cuda.memory_allocated()
    out_td = experts_triton(*arguments(inputs))
    assert torch.cuda.memory_allocated() - before <= h_bytes + x_bytes + sum(routing_bytes(inputs).values()) + slack
    del out_td
    assert gpu.peak_bytes(lambda: experts_triton(*arguments(inputs))) <= h_bytes + h_bytes // 2 + y_bytes + x_bytes + slack
    most = 2 * h_bytes + y_bytes + 3 * x_bytes + slack
    assert gpu.peak_bytes(lambda: run(experts_triton, inputs)) <= most
    assert gpu.peak_bytes(lambda: run(experts_reference, inputs)) > most


@pytest.mark.parametrize(
    "case", [WIDE, dataclasses.replace(WIDE, adapters=2), dataclasses.replace(WIDE, stacks="fp8", trained=False)], ids=str
)
def test_the_host_never_waits(case):
    inputs = moved_inputs(make(case))
    run(experts_triton, inputs)  # compiled, which may wait
    with no_host_wait():
        run(experts_triton, inputs)


def test_control_waiting_is_noticed():
    inputs = moved_inputs(make(WIDE))
    with no_host_wait(), pytest.raises(RuntimeError, match="synchroniz"):
        run(experts_reference, inputs)  # looks for each expert's tokens


@torch.no_grad()
def test_a_decode_step_can_be_captured_in_a_graph():
    """Replayed on other tokens with another routing, to the bits that the plain call gives."""
    case = dataclasses.replace(WIDE, routing="release", trained=False)
    inputs = moved_inputs(make(case))
    hidden_td, ids_tk, weights_tk = (x.detach().clone() for x in (inputs.hidden_td, inputs.expert_ids_tk, inputs.weights_tk))

    def step():
        return experts_triton(hidden_td, inputs.gate_up_eid, inputs.down_edn, ids_tk, weights_tk, inputs.lora)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured_td = step()
    graph.replay()
    first_td = captured_td.clone()
    hidden_td.mul_(2)
    ids_tk.copy_((ids_tk + 1) % 128)
    graph.replay()
    assert torch.equal(captured_td, step())
    assert not torch.equal(captured_td, first_td)


def test_stacks_beyond_31_bits_of_elements():
    """130 experts of the release's widths: the last gate-up matrix begins 2.16e9 elements in. Forward, dX and weight gradients."""
    gpu.need_memory(24)
    num_experts, d, n, tokens = 130, 4096, 2048, 40
    inputs = moved_inputs(make(Case("64 rows", BF16, "dense", trained=True, width=d, expert_width=n)))
    two = dataclasses.replace(inputs, **{name: getattr(inputs, name).detach()[:tokens] for name in ("hidden_td", "dout_td")})
    two = dataclasses.replace(two, expert_ids_tk=inputs.expert_ids_tk[:tokens], weights_tk=inputs.weights_tk.detach()[:tokens])
    stacks = {}
    for name in ("gate_up_eid", "down_edn"):
        pair = getattr(inputs, name).detach()
        stacks[name] = torch.zeros(num_experts, *pair.shape[1:], dtype=BF16, device=gpu.DEVICE)
        stacks[name][[0, -1]] = pair
        stacks[name].requires_grad_()
    assert (num_experts - 1) * 2 * n * d > 2**31
    hidden_td = two.hidden_td.requires_grad_()
    many = dataclasses.replace(two, hidden_td=hidden_td, expert_ids_tk=two.expert_ids_tk * (num_experts - 1), **stacks)
    got = run(experts_triton, many)
    plain, exact = run(reference, two), run(reference, two.in_fp64())
    got |= {name: got[name][[0, -1]] for name in stacks}
    assert worse_than_torch(got, plain, exact, BF16) == []
