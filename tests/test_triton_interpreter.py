"""The bench for Triton kernels: its arithmetic is a GPU's, and it leaves no trace when it is done.

Exercise it: ``pytest tests/test_triton_interpreter.py``.
"""

from __future__ import annotations

import logging

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from support.triton_interpreter import interpreted  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from ms4_kernels import dispatch  # noqa: E402

# ---------------------------------------------------------------- arithmetic


@triton.jit
def scaled(x, FACTOR: tl.constexpr):
    return x * FACTOR


@triton.jit
def product(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = tl.load(a_ptr + rows[:, None] * K + inner[None, :], mask=(rows[:, None] < M) & (inner[None, :] < K), other=0.0)
        b = tl.load(b_ptr + inner[:, None] * N + columns[None, :], mask=(inner[:, None] < K) & (columns[None, :] < N), other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total = scaled(total, 0.5)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], total.to(c_ptr.dtype.element_ty), mask=inside)


def multiply(a, b, out_type, precision="ieee"):
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty(m, n, dtype=out_type)
    with interpreted() as launches:
        grid = lambda meta: (triton.cdiv(m, meta["BM"]), triton.cdiv(n, meta["BN"]))  # noqa: E731
        product[grid](a, b, c, m, n, k, BM=32, BN=64, BK=32, PRECISION=precision, num_warps=4, num_stages=3)
    return c, launches


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_dot_sums_in_float32(kind):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 90, generator=generator).to(kind), torch.randn(90, 70, generator=generator).to(kind)
    c, _ = multiply(a, b, torch.float32)
    # Products of 11-bit or shorter mantissas are exact in float32; a sum of 90 of them loses at most 90 * 2^-24 of the sum of magnitudes.
    bound = 90 * 2**-24 * (a.double().abs() @ b.double().abs()) * 0.5
    if kind == torch.float32:
        bound = bound * 2  # the products are rounded as well
    assert ((c.double() - 0.5 * (a.double() @ b.double())).abs() <= bound).all()


def test_dot_of_float32_loses_the_bits_that_tf32_lacks_unless_ieee_is_asked_for():
    a, b = torch.full((32, 32), 1 + 2.0**-12), torch.eye(32, 64)
    assert torch.equal(multiply(a, b, torch.float32, "tf32")[0][:, :32], torch.full((32, 32), 0.5))
    assert torch.equal(multiply(a, b, torch.float32, "ieee")[0][:, :32], a / 2)


@triton.jit
def converted(x_ptr, y_ptr, n, KIND: tl.constexpr, BITCAST: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    if BITCAST:
        x = x.to(KIND, bitcast=True)
    else:
        x = x.to(KIND)
    tl.store(y_ptr + at, x.to(y_ptr.dtype.element_ty), mask=at < n)


def convert(x, out_type, through=tl.float32, bitcast=False):
    y = torch.empty(x.shape, dtype=out_type)
    with interpreted():
        converted[(1,)](x, y, x.numel(), KIND=through, BITCAST=bitcast, BLOCK=triton.next_power_of_2(x.numel()))
    return y


def test_casts_to_bfloat16_round_to_nearest_even():
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, float("inf"), 1e-40, 0.0])
    x = torch.cat([ties, torch.randn(1000, generator=torch.Generator().manual_seed(0))])
    assert torch.equal(convert(x, torch.bfloat16), x.bfloat16())
    assert convert(torch.tensor([float("nan")]), torch.bfloat16).isnan().all()
    assert torch.equal(convert(torch.arange(-300, 300, dtype=torch.int32), torch.bfloat16, tl.int32), torch.arange(-300, 300).bfloat16())


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16])
def test_all_256_values_of_float8_e4m3_are_read(target):
    bits = torch.arange(256, dtype=torch.uint8)
    want = bits.view(torch.float8_e4m3fn).to(target)
    for got in (convert(bits, target, tl.float8e4nv, bitcast=True), convert(bits.view(torch.float8_e4m3fn), target, tl.float8e4nv)):
        assert torch.equal(got.nan_to_num(nan=1e4), want.nan_to_num(nan=1e4))


def test_casts_to_float8_round_to_nearest_even_and_saturate():
    x = torch.cat([torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 50, torch.tensor([464.0, 1e6, -1e6, 2.0**-10])])
    got = convert(x, torch.float8_e4m3fn)
    assert torch.equal(got.float(), x.clamp(-448, 448).to(torch.float8_e4m3fn).float())


@triton.jit
def elementwise(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + at, mask=at < n, other=0.0), tl.load(y_ptr + at, mask=at < n, other=0.0)
    tl.store(out_ptr + at, x * y, mask=at < n)
    tl.store(out_ptr + n + at, x + y, mask=at < n)
    tl.store(out_ptr + 2 * n + at, tl.where(x < y, x, 2.0 * y), mask=at < n)
    tl.store(out_ptr + 3 * n + at, tl.maximum(x, y), mask=at < n)
    tl.store(out_ptr + 4 * n + at, (x > y).to(tl.bfloat16), mask=at < n)
    tl.store(out_ptr + 5 * n, x.to(tl.float32).sum(0).to(tl.bfloat16))
    tl.store(out_ptr + 5 * n + 1, tl.max(x, 0))


def test_bfloat16_arithmetic_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, generator=generator).bfloat16() for _ in range(2))
    out = torch.empty(502, dtype=torch.bfloat16)
    with interpreted():
        elementwise[(1,)](x, y, out, 100, BLOCK=128)
    want = [x * y, x + y, torch.where(x < y, x, 2 * y), torch.maximum(x, y), (x > y).bfloat16(), x.max()[None]]
    assert torch.equal(torch.cat([out[:500], out[501:]]), torch.cat(want))
    assert abs(out[500].double() - x.double().sum()) <= 2**-8 * x.double().sum().abs()  # one rounding to 8 bits


@triton.jit
def wide_index(out_ptr, expert, WIDEN: tl.constexpr):
    if WIDEN:
        expert = expert.to(tl.int64)
    offset = expert * 16777216
    tl.store(out_ptr, offset.to(tl.int64))


def test_int32_overflow_is_caught_and_int64_is_right():
    out = torch.zeros(1, dtype=torch.int64)
    with interpreted():
        wide_index[(1,)](out, 128, WIDEN=True)
        assert out.item() == 2**31
        with pytest.raises(OverflowError, match="2147483648"):
            wide_index[(1,)](out, 128, WIDEN=False)
    with interpreted(check=False):  # negative control: the index wraps
        wide_index[(1,)](out, 128, WIDEN=False)
    assert out.item() == -(2**31)


# ---------------------------------------------------------------- the context


@triton.jit
def copied(x_ptr, y_ptr, stop, bound, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < bound, other=0.0), mask=at < stop)


def test_the_same_kernel_compiles_before_within_and_after():
    kinds = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*bf16", "M": "i32", "N": "i32", "K": "i32"}
    constants = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": "ieee"}
    constants = {(product.arg_names.index(name),): value for name, value in constants.items()}
    kinds.update({product.arg_names[position]: "constexpr" for (position,) in constants})

    def compiled():
        source = ASTSource(fn=product, signature=kinds, constexprs=constants)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"].count("wgmma.mma_async")

    def interpret():
        with interpreted():
            assert compiled() > 0
        return multiply(torch.ones(4, 40), torch.ones(40, 4), torch.float32)[0]

    before = {name: vars(JITFunction)[name] for name in ("run", "__call__")}
    assert torch.equal(interpret(), torch.full((4, 4), 20.0))
    assert compiled() > 0
    assert torch.equal(interpret(), torch.full((4, 4), 20.0))
    assert before == {name: vars(JITFunction)[name] for name in before}


def test_dispatch_chooses_triton_inside_only(caplog):
    caplog.set_level(logging.INFO)
    x = torch.zeros(1)
    assert dispatch.choose("experts", "auto", x) == "cpu"
    with interpreted() as outer:
        assert dispatch.choose("experts", "auto", x) == "triton"
        with interpreted() as inner:
            copied[(1,)](x, torch.zeros(1), 1, 1, BLOCK=16)
        copied[(1,)](x, torch.zeros(1), 1, 1, BLOCK=16)
        assert dispatch.choose("experts", "triton", x) == "triton"
    assert (len(outer), len(inner)) == (1, 1)
    assert dispatch.choose("experts", "auto", x) == "cpu"


def test_launch_mistakes_are_named():
    x = torch.zeros(16)
    with interpreted():
        with pytest.raises(TypeError, match="num_warp"):
            copied[(1,)](x, x, 16, 16, BLOCK=16, num_warp=4)
        with pytest.raises(ValueError, match="65535"):
            copied[(1, 70000)](x, x, 16, 16, BLOCK=16)
        with pytest.raises(RuntimeError, match="outside a kernel"):
            scaled(x, 2)
    with pytest.raises(RuntimeError, match=r"(?i)active driver|cuda|nvidia"):  # outside the context nothing is interpreted
        copied[(1,)](x, x, 16, 16, BLOCK=16)


OFFSET = tl.constexpr(3)


def test_kernels_may_close_over_names_and_take_tuples_none_and_numbers():
    shift = tl.constexpr(5)

    @triton.jit
    def various(pointers, missing, yes, factor, one, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        x = tl.load(pointers[0] + at)
        if missing is None:
            x += shift
        if yes:
            x = x * factor
        low, high = tl.min(x, 0), x.max(0)
        tl.device_assert(high >= low)
        tl.store(pointers[1] + at, tl.cumsum(tl.flip(tl.sort(x), 0), 0) + one + OFFSET + factor.to(tl.float32))
        tl.store(pointers[1] + BLOCK + at, tl.argmax(x, 0) + at)

    x, y = torch.randn(16, generator=torch.Generator().manual_seed(0)), torch.zeros(32)
    with interpreted() as launches:
        various[(1,)]((x, y), None, True, 2.0, 1, BLOCK=16)
    want = ((x.double() + 5) * 2).sort(descending=True).values.cumsum(0) + 1 + 3 + 2
    # Each step of a running sum of 16 numbers, and each of the three additions, rounds to 24 bits what is at most 2^8.
    assert ((y[:16].double() - want).abs() <= 19 * 2**-24 * 2**8).all()
    assert torch.equal(y[16:], x.argmax() + torch.arange(16.0))
    assert launches[0].arguments["pointers[1]"].written_bytes == 2 * 16 * 4


def test_autotuned_kernels_take_their_first_configuration():
    tuned = triton.autotune([triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})], key=[])(copied)
    x, y = torch.arange(40.0), torch.zeros(40)
    with interpreted() as launches:
        tuned[lambda meta: (triton.cdiv(40, meta["BLOCK"]),)](x, y, 40, 40)
    assert torch.equal(x, y)
    assert launches[0].grid == (3, 1, 1)
