"""The formulas against bytes counted while the kernels run in the interpreter, and the gate of 1.1 times the compulsory minimum.

At this small size indices and tile lists weigh 16 times what they weigh beside the release's rows of 4096. torch's own reductions and
gathers of [R] numbers between the launches are not counted.

Shape suffixes: t tokens, k experts per token, e experts, r rows, d hidden, n expert intermediate, i = 2n, p LoRA rank.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from support.quantised import fp8_weight, nvfp4_weight
from support.triton_interpreter import Launch, interpreted

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.triton import launch
from ms4_kernels.moe.triton.experts import experts_triton
from ms4_kernels.moe.triton.operands import Rows, Stack
from ms4_kernels.moe.triton.tiles import dh_tile, up_tile
from ms4_kernels.report import gates
from ms4_kernels.report.traffic import Operation, Sizes, backward, forward, lora_backward, lora_forward, weight_gradients
from ms4_kernels.routing.sorting import sort_by_expert

T, K, E, D, N, RANK = 128, 4, 8, 256, 128, 16
ROWS_PER_EXPERT = T * K / E
FORWARD = ["up_kernel", "grouped_kernel", "combine_kernel"]
BACKWARD = ["dh_kernel", "grouped_kernel", "combine_kernel"]


def sizes(**more) -> Sizes:
    """With the launcher's tiles; every expert has rows, so all weights are needed."""
    tile = dh_tile(ROWS_PER_EXPERT, torch.bfloat16)
    assert up_tile(ROWS_PER_EXPERT, torch.bfloat16).block_m == tile.block_m
    return Sizes(T, D, N, E, K, block_rows=tile.block_m, block_columns=tile.block_n, **more)


def problem():
    generator = torch.Generator().manual_seed(0)
    hidden_td = torch.randn(T, D, generator=generator).bfloat16()
    gate_up_eid = (torch.randn(E, 2 * N, D, generator=generator) / 16).bfloat16()
    down_edn = (torch.randn(E, D, N, generator=generator) / 16).bfloat16()
    logits_te = torch.randn(T, E, generator=generator)
    weights_tk, ids_tk = logits_te.softmax(-1).topk(K)
    assert ids_tk.unique().numel() == E
    return hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk


def counted(operations: list[Operation | tuple[Operation, Operation]], launches: list[Launch]) -> tuple[dict, dict, dict]:
    """Name -> bytes counted, by formula, compulsory; a pair is an operation with its low-rank tail in one launch."""
    assert len(operations) == len(launches), [one.kernel for one in launches]
    real, moved, minimum = {}, {}, {}
    for operation, one in zip(operations, launches, strict=True):
        parts = operation if isinstance(operation, tuple) else (operation,)
        name = parts[0].name
        real[name] = one.traffic.unique_read_bytes + one.traffic.unique_written_bytes
        moved[name] = sum(part.moved for part in parts)
        minimum[name] = sum(part.minimum for part in parts)
    return real, moved, minimum


def check(operations, launches) -> None:
    real, moved, minimum = counted(operations, launches)
    for name, value in real.items():
        # The formula leaves out the few scales of whole quantised matrices.
        assert value == pytest.approx(moved[name], rel=0.001), name
    assert gates.traffic(real, minimum) == []


def test_frozen_bf16():
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = problem()
    hidden_td.requires_grad_()
    weights_tk.requires_grad_()
    with interpreted() as launches:
        out_td = experts_triton(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk)
        first = kernels_of_experts(launches)
        out_td.backward(torch.randn(T, D).bfloat16())
        second = kernels_of_experts(launches)[len(first) :]
    assert [one.kernel for one in first] == FORWARD
    assert [one.kernel for one in second] == BACKWARD
    check(forward(sizes()), first)
    check([operation for operation in backward(sizes()) if operation.name != "ds"], second)


@pytest.mark.parametrize(("kind", "weight"), [(fp8_weight, 1.0), (nvfp4_weight, 0.5 + 1 / 16)])
def test_frozen_quantised(kind, weight):
    hidden_td, _, _, ids_tk, weights_tk = problem()
    hidden_td.requires_grad_()
    with interpreted() as launches:
        experts_triton(hidden_td, kind(E, 2 * N, D), kind(E, D, N), ids_tk, weights_tk).sum().backward()
    found = kernels_of_experts(launches)
    assert [one.kernel for one in found] == FORWARD + BACKWARD
    small = sizes(weight=weight)
    check(forward(small), found[:3])
    check([operation for operation in backward(small) if operation.name != "ds"], found[3:])


def test_lora_on_frozen_bf16():
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = problem()
    shapes = [(E, RANK, D), (E, 2 * N, RANK), (E, RANK, N), (E, D, RANK)]
    pairs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().div_(16).requires_grad_() for shape in shapes]
    hidden_td.requires_grad_()
    weights_tk.requires_grad_()
    with interpreted() as launches:
        out_td = experts_triton(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, ExpertLora(*pairs, 2.0, 2.0))
        first = kernels_of_experts(launches)
        out_td.backward(torch.randn(T, D).bfloat16())
        second = kernels_of_experts(launches)[len(first) :]
    small = sizes(rank=RANK)
    base, low = {one.name: one for one in forward(small)}, {one.name: one for one in lora_forward(small)}
    check([low["X A1"], (base["up"], low["tail of up"]), low["A A2"], (base["down"], low["tail of down"]), base["combine"]], first)
    base, low = {one.name: one for one in backward(small, saves_a=True)}, {one.name: one for one in lora_backward(small)}
    order = [low["X A1 again"], low["dO B2"], (base["dh"], low["tail of dh"]), low["A' A2"], low["dA2"], low["dB2"], low["dH B1"]]
    order += [low["dA1"], low["dB1"], (base["dx"], low["tail of dx"]), base["combine dx"]]
    check(order, second)


def test_weight_gradients():
    hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk = problem()
    gate_up_eid.requires_grad_()
    down_edn.requires_grad_()
    with interpreted() as launches:
        experts_triton(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk).sum().backward()
    grams = [one for one in launches if one.kernel == "gram_kernel"]
    check(weight_gradients(sizes())[::-1], grams)


def test_control_rows_copied_into_the_experts_order_first_break_the_gate():
    """What this design avoids: X as [R, d], K times the tokens. The copy itself is not even counted."""
    hidden_td, gate_up_eid, _, ids_tk, _ = problem()
    order = sort_by_expert(ids_tk, E)
    copied = dataclasses.replace(order, pair_r=torch.arange(T * K))
    with interpreted() as launches:
        launch.up(hidden_td[order.token_r], Stack.of(gate_up_eid), Rows(copied, 1))
        launch.up(hidden_td, Stack.of(gate_up_eid), Rows(order, K))
    up = forward(sizes())[0]
    bad, good = ({"up": float(one.traffic.unique_read_bytes + one.traffic.unique_written_bytes)} for one in launches.of("up_kernel"))
    assert len(gates.traffic(bad, {"up": up.minimum})) == 1
    assert gates.traffic(good, {"up": up.minimum}) == []


def kernels_of_experts(launches) -> list[Launch]:
    """Without those that sort rows."""
    return [one for one in launches if one.kernel in {*FORWARD, *BACKWARD, "gram_kernel"}]
