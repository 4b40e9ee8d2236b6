"""NVFP4 decoding against compressed-tensors' own, to the bit, and against its definition."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_scheme import NVFP4

from ms4_kernels.quantised import dequantise_nvfp4

SMALL, LARGE = (16, 64), (256, 2048)  # tables are used from 2^17 bytes of codes, [.., O, I / 2]
ORDER_MATTERS = 899.8077392578125  # code * scale / divisor, computed from the left, differs in bf16 for 108 of the 2,032 pairs
MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def inputs(shape, *, scale_codes=None, divisor=1234.5):
    rows, columns = shape
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    codes.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    scales = torch.randint(0, 0x7F, (rows, columns // 16), dtype=torch.uint8)
    if scale_codes is not None:
        scales = torch.tensor(scale_codes, dtype=torch.uint8).repeat(scales.numel())[: scales.numel()].view(scales.shape)
    return codes, scales, torch.tensor(divisor)


def peer(codes, scales, divisor):
    """compressed-tensors, with the global scale in the shape that files have."""
    scheme = QuantizationScheme(targets=["Linear"], **NVFP4)
    state = {"weight_packed": codes, "weight_scale": scales.view(torch.float8_e4m3fn), "weight_global_scale": divisor.reshape(1)}
    return NVFP4PackedCompressor.decompress(state, scheme)["weight"]


@pytest.mark.parametrize("divisor", [1234.5, 1.0, 3.1e-3, 26880.0, 7.7e5, ORDER_MATTERS])
@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 16)])
def test_equals_compressed_tensors(shape, divisor):
    codes, scales, divisor_tensor = (
        inputs(shape, divisor=divisor)
        if shape != (1, 16)
        else (torch.randint(0, 256, (1, 8), dtype=torch.uint8), torch.tensor([[0x45]], dtype=torch.uint8), torch.tensor(divisor))
    )
    expected = peer(codes, scales, divisor_tensor)
    actual = dequantise_nvfp4(codes, scales, divisor_tensor, torch.bfloat16)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))  # signs of zeros too


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize(
    "scale_codes", [[0x00], [0x7E], [0x01], [0x07], [0x00, 0x01, 0x08, 0x38, 0x7E], [0x80, 0xB8]], ids=lambda codes: bytes(codes).hex()
)
def test_equals_compressed_tensors_at_the_edges(shape, scale_codes):
    codes, scales, divisor = inputs(shape, scale_codes=scale_codes)
    actual = dequantise_nvfp4(codes, scales, divisor, torch.bfloat16)
    assert torch.equal(actual.view(torch.int16), peer(codes, scales, divisor).view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_by_definition(shape, dtype):
    codes, scales, divisor = inputs(shape)
    value = torch.tensor(MAGNITUDES + [-m for m in MAGNITUDES], dtype=torch.float64)
    even, odd = value[(codes % 16).int()], value[(codes // 16).int()]
    blocks = scales.view(torch.float8_e4m3fn).double().repeat_interleave(16, dim=1)
    expected = torch.stack((even, odd), dim=2).view(shape) * blocks / divisor.double()
    actual = dequantise_nvfp4(codes, scales, divisor, dtype)
    assert actual.dtype == dtype
    # Two roundings in fp32 (quotient, product), then one to the type; the smallest, 2^-9 * 0.5 / 1234, are subnormal in fp16.
    relative = torch.finfo(dtype).eps / 2 + (2 * 2**-24 if dtype != torch.float64 else 2**-52)
    torch.testing.assert_close(actual.double(), expected, rtol=relative, atol=2**-25 if dtype == torch.float16 else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tables_and_arithmetic_agree(dtype, monkeypatch):
    codes, scales, divisor = inputs(LARGE)
    fast = dequantise_nvfp4(codes, scales, divisor, dtype)
    monkeypatch.setattr("ms4_kernels.quantised.nvfp4.pays", lambda *_: False)
    slow = dequantise_nvfp4(codes, scales, divisor, dtype)
    assert torch.equal(fast.view(torch.uint8), slow.view(torch.uint8))


def test_stacks_decode_matrix_by_matrix():
    singles = [inputs(LARGE, divisor=10.0**power) for power in range(3)]
    codes, scales, divisors = (torch.stack(parts) for parts in zip(*singles, strict=True))
    actual = dequantise_nvfp4(codes, scales, divisors, torch.bfloat16)
    assert torch.equal(actual, torch.stack([dequantise_nvfp4(*single, torch.bfloat16) for single in singles]))
    strided = dequantise_nvfp4(codes.flip(0)[:, ::2], scales.flip(0)[:, ::2], divisors.flip(0), torch.bfloat16)
    assert torch.equal(strided, actual.flip(0)[:, ::2])


def test_nan_scales_give_nan():
    for shape in (SMALL, LARGE):
        codes, scales, divisor = inputs(shape, scale_codes=[0x7F])
        assert dequantise_nvfp4(codes, scales, divisor, torch.bfloat16).isnan().all()


@pytest.mark.parametrize(
    ("codes", "scales", "divisor"),
    [((4, 8), (4, 2), ()), ((4, 8), (3, 1), ()), ((4, 8), (4, 1), (4,)), ((2, 4, 8), (2, 4, 1), ())],
)
def test_shapes_that_do_not_fit(codes, scales, divisor):
    with pytest.raises(ValueError, match="scales"):
        dequantise_nvfp4(torch.zeros(codes, dtype=torch.uint8), torch.zeros(scales, dtype=torch.uint8), torch.ones(divisor), torch.bfloat16)


def test_meta_tensors_pass():
    out = dequantise_nvfp4(
        torch.empty(2, 64, 4096, dtype=torch.uint8, device="meta"),
        torch.empty(2, 64, 512, dtype=torch.uint8, device="meta"),
        torch.empty(2, device="meta"),
        torch.bfloat16,
    )
    assert (out.shape, out.device.type) == ((2, 64, 8192), "meta")
