"""E4M3 against its definition written out, torch's own casts, and the formulas of transformers' converter."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.quantised import E4M3_MAX, count_saturated, dequantise_fp8, fit_fp8_scale, fuse_fp8_pair, quantise_fp8

ALL = torch.arange(256, dtype=torch.uint8)
NANS = torch.tensor([0x7F, 0xFF])
LARGE = (64, 4096)  # above the size from which tables are used


def by_definition(code: int) -> float:
    """OCP 8-bit floating point: 1 sign, 4 exponent bits with bias 7, 3 of mantissa; no infinities, all ones is NaN."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, (code >> 3) & 0xF, code & 7
    if exponent == 0xF and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def bits(x: torch.Tensor) -> torch.Tensor:
    """For comparisons that tell -0 from 0."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def codes_of(shape, generator=None):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def finite(codes):
    return codes.where((codes & 0x7F) != 0x7F, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_code_by_definition(dtype):
    expected = torch.tensor([by_definition(code) for code in range(256)], dtype=torch.float64)
    actual = dequantise_fp8(ALL[None], torch.tensor(1.0), dtype)[0]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0, equal_nan=True)  # 4 bits of significand fit every type
    assert actual.dtype == dtype
    assert float(expected.nan_to_num().max()) == E4M3_MAX


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 6), LARGE])
def test_product_is_rounded_once(dtype, shape):
    codes, scale = codes_of(shape), torch.tensor(0.00123, dtype=torch.bfloat16)
    actual = dequantise_fp8(codes, scale, dtype)
    # 4 by 8 bits of significand: the fp64 product is exact, so this rounds once
    expected = (codes.view(torch.float8_e4m3fn).double() * scale.double()).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if dtype == torch.bfloat16:  # transformers: bf16 values times a bf16 scale
        published = (codes.view(torch.float8_e4m3fn).to(torch.bfloat16) * scale.to(torch.bfloat16)).to(torch.bfloat16)
        torch.testing.assert_close(actual, published, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1, 1), (3, 1, 1), (3, 64, 1), (1, 1, 4096), (4096,)])
def test_any_scale_that_broadcasts(scale_shape, dtype):
    codes, scale = codes_of((3, *LARGE)), torch.rand(scale_shape) + 0.5
    expected = (codes.view(torch.float8_e4m3fn).to(torch.promote_types(dtype, torch.float32)) * scale).to(dtype)
    torch.testing.assert_close(dequantise_fp8(codes, scale, dtype), expected, rtol=0, atol=0, equal_nan=True)


def test_strided_and_odd_and_empty_codes():
    codes = codes_of((2, 512, 1026))
    scale = torch.tensor(0.5)
    for view in (codes.transpose(1, 2), codes[:, ::2], codes[..., 1:], codes[..., 1:-1], codes[:, :0]):
        expected = view.contiguous().clone().view(torch.float8_e4m3fn).float() * scale
        torch.testing.assert_close(dequantise_fp8(view, scale, torch.float32), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(3, 6), LARGE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0123, 1.0, 3e-5])
def test_codes_come_back(shape, dtype, scale):
    codes = finite(codes_of(shape))
    factor = torch.tensor(scale, dtype=torch.bfloat16)
    assert torch.equal(quantise_fp8(dequantise_fp8(codes, factor, dtype), factor), codes)  # -0 (0x80) included
    assert count_saturated(dequantise_fp8(codes, factor, dtype), factor) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounds_to_the_nearest_code_ties_to_even(dtype):
    values = torch.tensor([by_definition(code) for code in range(0x7F)], dtype=torch.float64)
    midpoints = (values[1:] + values[:-1]) / 2  # exact in bf16: 5 bits of significand
    even = torch.arange(0x7E, dtype=torch.uint8)
    even += even & 1
    assert torch.equal(quantise_fp8(midpoints.to(dtype), torch.tensor(1.0)), even)
    weight = torch.randn(64, 64).to(dtype) * 50
    codes = quantise_fp8(weight, torch.tensor(1.0))
    error = (dequantise_fp8(codes, torch.tensor(1.0), torch.float64) - weight.double()).abs()
    least = (weight.double()[..., None].abs() - values).abs().amin(dim=-1)
    assert torch.equal(error, least)
    assert torch.equal(codes >> 7, weight.signbit().to(torch.uint8))


@pytest.mark.parametrize("shape", [(4, 8), LARGE])
def test_saturates_and_counts(shape):
    weight = torch.full(shape, 463.0)  # would round to 448 anyway
    assert count_saturated(weight, torch.tensor(1.0)) == 0
    weight[0, :3] = torch.tensor([465.0, -1e30, torch.inf])
    for dtype in (torch.bfloat16, torch.float32):
        codes = quantise_fp8(weight.to(dtype), torch.tensor(1.0))
        assert codes[0, :4].tolist() == [0x7E, 0xFE, 0x7E, 0x7E]
        assert count_saturated(weight, torch.tensor(1.0)) == 3
    assert count_saturated(weight, torch.full((shape[0], 1), 2.0)) == 2
    assert count_saturated(weight[:0], torch.tensor(1.0)) == 0


def test_nan_stays_nan():
    weight = torch.tensor([[torch.nan, 1.0]])
    assert int(quantise_fp8(weight, torch.tensor(1.0))[0, 0]) & 0x7F == 0x7F
    assert dequantise_fp8(NANS.to(torch.uint8)[None], torch.tensor(1.0), torch.bfloat16).isnan().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_unusable_scales_are_refused(scale):
    with pytest.raises(ValueError, match="zero, negative or not finite"):
        quantise_fp8(torch.ones(2, 2), torch.tensor(scale))


def test_fitted_scale():
    weight = torch.randn(5, 7, 9)
    weight[2] = 0
    weight[3] *= 1e-40  # denormal: nothing may divide to infinity
    scale = fit_fp8_scale(weight)
    assert scale.shape == (5,)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale[[0, 1, 4]], weight[[0, 1, 4]].abs().amax(dim=(1, 2)) / 448)
    assert scale[2] == 1
    codes = quantise_fp8(weight, scale[:, None, None])
    assert (codes & 0x7F).amax(dim=(1, 2))[[0, 1, 4]].tolist() == [0x7E] * 3
    assert count_saturated(weight, scale[:, None, None].bfloat16()) == 0  # rounded to the type that files have
    # Half a step of 3 mantissa bits relative, half of the smallest code absolute.
    error = (dequantise_fp8(codes, scale[:, None, None], torch.float32) - weight).abs()
    assert (error <= weight.abs() * 2**-4 + scale[:, None, None] * 2**-10).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_scale_fits_what_is_not_finite(bad):
    weight = torch.ones(2, 3, 3)
    weight[1, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        fit_fp8_scale(weight)


def published_fusion(gate, gate_scale, up, up_scale):
    """The formula of ``FP8RescaleMergeAndConcatenate`` in transformers' converter, on E4M3 tensors."""
    fused = torch.max(gate_scale, up_scale)
    halves = [w.to(torch.bfloat16) * (s / fused) for w, s in ((gate, gate_scale), (up, up_scale))]
    return torch.cat([half.clamp(-448.0, 448.0).to(torch.float8_e4m3fn) for half in halves]), fused


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(16, 16), LARGE])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.7, 0.0013])
def test_fusion_is_the_published_one(shape, scale_dtype, ratio):
    gate, up = finite(codes_of(shape)), finite(codes_of(shape))
    gate.view(-1)[:256], up.view(-1)[:256] = finite(ALL), finite(ALL)
    gate_scale, up_scale = torch.tensor(0.0123, dtype=scale_dtype), torch.tensor(0.0123 * ratio, dtype=scale_dtype)
    codes, scale = fuse_fp8_pair(gate, gate_scale, up, up_scale)
    expected, expected_scale = published_fusion(gate.view(torch.float8_e4m3fn), gate_scale, up.view(torch.float8_e4m3fn), up_scale)
    assert torch.equal(codes, expected.view(torch.uint8))
    assert torch.equal(scale, expected_scale)
    assert scale.dtype == scale_dtype
    rows = shape[0]
    assert torch.equal(codes[:rows], gate) == (ratio <= 1)  # the larger scale's half is kept, the other one is not
    assert torch.equal(codes[rows:], up) == (ratio >= 1)


def test_meta_tensors_pass():
    codes = torch.empty(64, 8192, dtype=torch.uint8, device="meta")
    out = dequantise_fp8(codes, torch.empty((), device="meta"), torch.bfloat16)
    assert (out.device.type, out.shape, out.dtype) == ("meta", codes.shape, torch.bfloat16)
    assert quantise_fp8(out, torch.empty((), device="meta")).shape == codes.shape


def test_2_to_the_31_codes():
    codes = torch.empty(2, 1 << 15, 1 << 15, dtype=torch.uint8)  # pages that are never touched cost nothing
    codes[:, -4:] = 0
    codes[1, -1, -2:] = torch.tensor([0x38, 0x7E], dtype=torch.uint8)
    last = dequantise_fp8(codes[:, -4:], torch.tensor([[[1.0]], [[0.5]]]), torch.bfloat16)
    assert last[1, -1, -2:].tolist() == [0.5, 224.0]
    assert last.count_nonzero() == 2
