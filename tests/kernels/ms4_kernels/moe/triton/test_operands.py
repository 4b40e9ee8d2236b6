"""What kernels are told of weights and rows."""

from __future__ import annotations

import pytest
import torch
from support.quantised import fp8_weight, nvfp4_weight

from ms4_kernels.moe.triton import operands
from ms4_kernels.moe.triton.operands import Factor, Rows, Stack, precision, stack_constants
from ms4_kernels.routing import sort_by_expert


def test_stack_knows_the_shape_of_the_values():
    assert Stack.of(torch.empty(3, 8, 32)).matrix == (8, 32)
    assert Stack.of(fp8_weight(3, 8, 32)).matrix == (8, 32)
    assert Stack.of(nvfp4_weight(3, 8, 32)).matrix == (8, 32)
    assert Stack.of(fp8_weight(3, 8, 32, groups=2)).groups == 2


def test_experts_may_lie_apart_and_matrices_must_not():
    apart = torch.empty(6, 8, 32)[::2]
    assert Stack.of(apart).arguments(16, 16)["weight_stride_e"] == 2 * 8 * 32
    with pytest.raises(ValueError, match="not contiguous"):
        Stack.of(torch.empty(3, 32, 8).transpose(1, 2))


def test_tiles_across_two_groups_of_scales_are_known():
    assert stack_constants("fp8", 2, 96, 32, False)["ONE_GROUP"] is False
    assert stack_constants("fp8", 2, 128, 32, False)["ONE_GROUP"] is True
    assert stack_constants("fp8", 1, 96, 64, False)["ONE_GROUP"] is True


def test_factor_strides_with_and_without_adapters():
    factor = Factor.of(torch.empty(2, 3, 8, 4).transpose(2, 3))
    assert factor is not None
    assert (factor.stride_l, factor.stride_e) == (3 * 32, 32)
    assert (Factor(torch.empty(3, 8, 4)).stride_l, Factor(torch.empty(3, 8, 4)).stride_e) == (0, 32)
    assert Factor.of(None) is None


def test_rows_are_cut_once_for_each_height():
    rows = Rows(sort_by_expert(torch.tensor([[0, 1], [1, 1]]), 2, backend="reference"), 2)
    assert rows.per_expert == 2
    assert rows.tiles(16) is rows.tiles(16)
    assert rows.tiles(2).stop_m.tolist() == [1, 3, 4, 0]


def test_fp32_follows_torch_about_tf32():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert precision(torch.float32) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert (precision(torch.float32), precision(torch.bfloat16)) == ("tf32", "ieee")
    finally:
        torch.set_float32_matmul_precision(before)


def test_descriptors_only_for_aligned_stacks_of_half_precision(monkeypatch):
    monkeypatch.setattr(operands, "copies_tiles", lambda device: True)

    def kind(weight):
        return Stack.of(weight).arguments(16, 16)["KIND"]

    assert kind(torch.empty(3, 8, 32, dtype=torch.bfloat16)) == "described"
    assert kind(torch.empty(3, 8, 36, dtype=torch.bfloat16)) == "dense"  # rows of 72 bytes
    assert kind(torch.empty(3 * 8 * 32 + 1, dtype=torch.bfloat16)[1:].view(3, 8, 32)) == "dense"
    assert kind(torch.empty(3, 8, 32)) == "dense"
    assert kind(torch.empty(0, 8, 32, dtype=torch.bfloat16)) == "dense"
    assert (kind(fp8_weight(3, 8, 32)), kind(nvfp4_weight(3, 8, 32))) == ("fp8", "nvfp4")


def test_a_cpu_copies_no_tiles():
    assert not operands.copies_tiles(torch.device("cpu"))
