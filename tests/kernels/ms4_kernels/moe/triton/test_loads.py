"""Decoding and loading: every code, every way round, tiles that stick out, and the order of the programs."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from support.quantised import fp8_weight, nvfp4_weight
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton.loads import e2m1_to_fp32, e4m3_to_fp32, halves, load_weight_tile, locate_tile, source_rows
from ms4_kernels.moe.triton.operands import Stack, stack_constants
from ms4_kernels.quantised import dequantise_nvfp4


@triton.jit
def _decode(codes_ptr, out_ptr, E4M3: tl.constexpr, NATIVE: tl.constexpr):
    place = tl.arange(0, 256)
    codes = tl.load(codes_ptr + place)
    if E4M3:
        value = e4m3_to_fp32(codes, NATIVE)
    else:
        value = e2m1_to_fp32(codes)
    tl.store(out_ptr + place, value)


@pytest.mark.parametrize("native", [True, False])
def test_every_e4m3_code(native):
    codes, found = torch.arange(256, dtype=torch.uint8), torch.empty(256)
    with interpreted():
        _decode[(1,)](codes, found, True, native)
    assert torch.equal(found.nan_to_num(7e7), codes.view(torch.float8_e4m3fn).float().nan_to_num(7e7))
    assert found.isnan().sum() == 2


def test_every_e2m1_code_and_only_the_low_half_counts():
    codes, found = torch.arange(256, dtype=torch.uint8), torch.empty(256)
    with interpreted():
        _decode[(1,)](codes, found, False, False)
    one = torch.full((1, 1), 0x38, dtype=torch.uint8)  # 1.0 in E4M3
    sixteen = torch.arange(16, dtype=torch.uint8)
    packed = (sixteen[::2] | sixteen[1::2] << 4).view(1, 8)
    expected = dequantise_nvfp4(packed, one, torch.tensor(1.0), torch.float32)
    assert torch.equal(found.view(16, 16), expected.expand(16, 16))


@triton.jit
def _tile(
    weight_ptr, block_scale_ptr, scale_ptr, out_ptr, o_start, i_start, O, I,  # noqa: E741
    KIND: tl.constexpr, GROUPS: tl.constexpr, ONE_GROUP: tl.constexpr, NATIVE: tl.constexpr,
    EVEN_O: tl.constexpr, EVEN_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    tile = load_weight_tile(
        weight_ptr, block_scale_ptr, scale_ptr, 0, o_start, i_start, O, I,
        out_ptr.dtype.element_ty, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_O, EVEN_I, BLOCK_O, BLOCK_I,
    )  # fmt: skip
    tl.store(out_ptr + tl.arange(0, BLOCK_O)[:, None] * BLOCK_I + tl.arange(0, BLOCK_I)[None, :], tile)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["dense", "fp8", "nvfp4"])
@pytest.mark.parametrize(("shape", "block"), [((64, 96), (16, 32)), ((40, 80), (16, 32)), ((24, 48), (32, 64))])
def test_tiles_are_the_bits_of_dequantise(kind, groups, shape, block, dtype):
    if kind == "dense":
        weight = torch.randn(1, *shape).to(dtype)
        values = weight[0]
    else:
        weight = (fp8_weight if kind == "fp8" else nvfp4_weight)(1, *shape, groups=groups)
        values = weight.dequantise(dtype)[0]
    stack = Stack.of(weight)
    padded = torch.nn.functional.pad(values, (0, block[1], 0, block[0]))
    constants = stack_constants(stack.kind, stack.groups, shape[0], block[0], False)
    constants |= {"EVEN_O": shape[0] % block[0] == 0, "EVEN_I": shape[1] % block[1] == 0, "BLOCK_O": block[0], "BLOCK_I": block[1]}
    with interpreted():
        for o in range(0, shape[0], block[0]):
            for i in range(0, shape[1], block[1]):
                found = torch.empty(block, dtype=dtype)
                _tile[(1,)](stack.values, stack.block_scale, stack.scale, found, o, i, *shape, **constants)
                assert torch.equal(found, padded[o : o + block[0], i : i + block[1]])


@triton.jit
def _locate(segment_ptr, start_ptr, stop_ptr, out_ptr, num_m, num_n, GROUP_M: tl.constexpr):
    segment, _, _, tile_n = locate_tile(segment_ptr, start_ptr, stop_ptr, num_m, num_n, GROUP_M)
    tl.store(out_ptr + 2 * tl.program_id(0), segment)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, tile_n)


@pytest.mark.parametrize(("num_m", "num_n", "group"), [(5, 3, 2), (8, 1, 4), (1, 7, 8), (9, 4, 3)])
def test_each_tile_once_and_neighbours_share_columns(num_m, num_n, group):
    number_m, found = torch.arange(num_m, dtype=torch.int32), torch.empty(num_m * num_n, 2, dtype=torch.int32)
    with interpreted():
        _locate[(num_m * num_n,)](number_m, number_m, number_m, found, num_m, num_n, group)
    tiles = [tuple(pair) for pair in found.tolist()]
    assert sorted(tiles) == [(m, n) for m in range(num_m) for n in range(num_n)]
    first = tiles[: min(group, num_m)]
    assert first == [(m, 0) for m in range(len(first))]


@triton.jit
def _sources(pair_ptr, out_ptr, start, stop, TOP_K: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, 16), source_rows(start + tl.arange(0, 16), stop, pair_ptr, TOP_K))


def test_rows_past_the_end_stand_for_the_last():
    pair_r, rows, tokens = torch.tensor([5, 0, 3, 1, 4, 2]), torch.empty(16, dtype=torch.int64), torch.empty(16, dtype=torch.int64)
    with interpreted():
        _sources[(1,)](pair_r, rows, 2, 5, 0)
        _sources[(1,)](pair_r, tokens, 2, 5, 2)
    assert rows.tolist() == [2, 3, *[4] * 14]
    assert tokens.tolist() == [1, 0, *[2] * 14]


@triton.jit
def _split(x_ptr, out_ptr):
    place = tl.arange(0, 16)[:, None] * 32 + tl.arange(0, 32)[None, :]
    left, right = halves(tl.load(x_ptr + place), 16, 32)
    half = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + half, left)
    tl.store(out_ptr + 256 + half, right)


def test_halves_are_left_and_right():
    x, found = torch.randn(16, 32), torch.empty(2, 16, 16)
    with interpreted():
        _split[(1,)](x, found)
    assert torch.equal(found, torch.stack(x.chunk(2, dim=1)))
