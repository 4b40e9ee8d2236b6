"""Containers: row groups, views, sizes, refusals."""

from __future__ import annotations

import pytest
import torch
from support.quantised import codes as byte
from support.quantised import fp8_weight as fp8
from support.quantised import nvfp4_weight as nvfp4

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight, dequantise_nvfp4


@pytest.mark.parametrize("rows", [4, 1024])
def test_row_groups_have_their_own_scale(rows):
    weight = fp8(3, 2 * rows, 256, groups=2)
    values = weight.codes.view(torch.float8_e4m3fn).float()
    values[:, :rows] *= weight.scale[:, 0, None, None]
    values[:, rows:] *= weight.scale[:, 1, None, None]
    assert torch.equal(weight.dequantise(torch.bfloat16), values.bfloat16())

    packed = nvfp4(3, 2 * rows, 256, groups=2)
    halves = [
        dequantise_nvfp4(packed.codes[:, half], packed.block_scale[:, half], packed.global_scale[:, group], torch.bfloat16)
        for group, half in enumerate((slice(None, rows), slice(rows, None)))
    ]
    assert torch.equal(packed.dequantise(torch.bfloat16), torch.cat(halves, dim=1))


@pytest.mark.parametrize("make", [fp8, nvfp4])
def test_one_matrix(make):
    weight = make(8, 32)
    assert weight.shape == (8, 32)
    assert weight.dequantise(torch.float32).shape == (8, 32)


@pytest.mark.parametrize("make", [fp8, nvfp4])
def test_experts_are_views(make):
    stack = make(5, 8, 32, groups=2)
    whole = stack.dequantise(torch.float32)
    assert stack.shape == (5, 8, 32)
    for index in range(5):
        one = stack.expert(index)
        assert one.shape == (8, 32)
        assert torch.equal(one.dequantise(torch.float32), whole[index])
        for part, parts in zip(one.tensors, stack.tensors, strict=True):
            assert part.untyped_storage().data_ptr() == parts.untyped_storage().data_ptr()
    share = stack.experts(2, 4)
    assert share.shape == (2, 8, 32)
    assert torch.equal(share.dequantise(torch.float32), whole[2:4])
    assert share.codes.data_ptr() == stack.codes[2].data_ptr()


def test_bytes_and_devices():
    weight, packed = fp8(4, 8, 32, groups=2), nvfp4(4, 8, 32)
    assert weight.num_bytes == 4 * 8 * 32 + 4 * 4 * 2
    assert packed.num_bytes == 4 * 8 * 16 + 4 * 8 * 2 + 4 * 4
    for each in (weight, packed):
        moved = each.to("meta")
        assert type(moved) is type(each)
        assert (moved.device.type, each.device.type) == ("meta", "cpu")
        assert moved.dequantise(torch.bfloat16).shape == each.shape


@pytest.mark.parametrize(
    "build",
    [
        lambda: Fp8Weight(torch.zeros(4, 4), torch.ones(1)),
        lambda: Fp8Weight(byte(4, 4).view(torch.float8_e4m3fn), torch.ones(1)),
        lambda: Fp8Weight(byte(4, 4), torch.ones(1, dtype=torch.bfloat16)),
        lambda: Fp8Weight(byte(4, 4), torch.ones(())),
        lambda: Fp8Weight(byte(4, 4), torch.ones(3)),
        lambda: Fp8Weight(byte(4, 4), torch.ones(0)),
        lambda: Fp8Weight(byte(2, 4, 4), torch.ones(3, 1)),
        lambda: Fp8Weight(byte(2, 4, 4), torch.ones(2, 1, 1)),
        lambda: Fp8Weight(byte(4), torch.ones(1)),
        lambda: Nvfp4Weight(byte(4, 8), byte(4, 2), torch.ones(1)),
        lambda: Nvfp4Weight(byte(4, 8), byte(2, 1), torch.ones(1)),
        lambda: Nvfp4Weight(byte(4, 8), byte(4, 1).view(torch.float8_e4m3fn), torch.ones(1)),
        lambda: Nvfp4Weight(byte(4, 8), byte(4, 1), torch.ones(1, dtype=torch.bfloat16)),
        lambda: Nvfp4Weight(byte(4, 8), byte(4, 1), torch.ones(())),
    ],
)
def test_parts_that_do_not_fit_are_refused(build):
    with pytest.raises(ValueError):
        build()


def test_2_to_the_31_codes_are_read_by_expert():
    codes = torch.empty(2, 1 << 15, 1 << 15, dtype=torch.uint8)  # pages that are never touched cost nothing
    codes[1, -1, -1] = 0x38
    weight = Fp8Weight(codes, torch.full((2, 2), 3.0))
    assert weight.num_bytes == (1 << 31) + 16
    last = Fp8Weight(weight.expert(1).codes[-2:], weight.scale[1])
    assert last.dequantise(torch.float32)[-1, -1] == 3.0


@pytest.mark.parametrize("shape", [(8, 32), (512, 1024)])
def test_a_default_device_changes_nothing(shape):
    for weight in (fp8(*shape), nvfp4(*shape)):
        expected = weight.dequantise(torch.bfloat16)
        with torch.device("meta"):
            actual = weight.dequantise(torch.bfloat16)
        assert torch.equal(actual, expected)
