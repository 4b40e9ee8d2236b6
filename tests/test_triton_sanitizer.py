"""The sanitizer of the bench for Triton kernels sees every planted bug, passes clean kernels, and counts what a hand counts.

Exercise it: ``pytest tests/test_triton_sanitizer.py``.
"""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from support.triton_interpreter import MisalignedError, OutOfBoundsError, RaceError, Traffic, interpreted  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402


@triton.jit
def copied(x_ptr, y_ptr, stop, bound, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < bound, other=0.0), mask=at < stop)


@triton.jit
def copied_unmasked(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at), mask=at < n)


@triton.jit
def summed_to_one_row(x_ptr, y_ptr, BLOCK: tl.constexpr, ATOMIC: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + at)
    if ATOMIC:
        tl.atomic_add(y_ptr + at, x)
    else:
        tl.store(y_ptr + at, x)


@triton.jit
def shifted_in_place(x_ptr, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(x_ptr + at + SHIFT, x)


@triton.jit
def scattered(x_ptr, index_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.load(index_ptr + at), tl.load(x_ptr + at))


def room():
    """A view of 40 elements within an allocation that goes on, so that an overrun damages and crashes nothing."""
    return torch.arange(400.0)[100:140]


def unmasked_tail():
    copied_unmasked[(3,)](room(), torch.zeros(40), 40, BLOCK=16)


def wrong_bound():
    copied[(3,)](room(), room(), 48, 40, BLOCK=16)


def one_past_the_end():
    copied[(3,)](room(), torch.zeros(40), 40, 41, BLOCK=16)


def into_a_neighbour_argument():
    whole = torch.zeros(80)
    copied[(3,)](whole[:40], whole[40:], 40, 41, BLOCK=16)


def into_a_hole():
    columns = torch.zeros(10, 8)[:, :4]  # a row-major reader of 4 columns would need the stride
    copied[(3,)](columns, torch.zeros(40), 40, 40, BLOCK=16)


def two_programs_store_one_row():
    summed_to_one_row[(4,)](torch.ones(64), torch.zeros(16), BLOCK=16, ATOMIC=False)


def read_of_what_the_previous_program_wrote():
    shifted_in_place[(3,)](torch.zeros(64), BLOCK=16, SHIFT=16)


def two_lanes_store_one_element():
    scattered[(1,)](torch.arange(16.0), torch.arange(16) // 2, torch.zeros(16), BLOCK=16)


def odd_address():
    odd = torch.zeros(100, dtype=torch.uint8)[1:97]
    converted_to_words[(1,)](odd, torch.zeros(16), BLOCK=16)


@triton.jit
def converted_to_words(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + at).to(tl.float32))


BUGS = [
    (unmasked_tail, OutOfBoundsError, r"copied_unmasked, program \(2, 0, 0\), .*:\d+: reads 8 elements outside 'x_ptr'.*\(element 40\)"),
    (wrong_bound, OutOfBoundsError, r"copied, program \(2, 0, 0\), .*: writes 8 elements outside 'y_ptr'.*byte 160"),
    (one_past_the_end, OutOfBoundsError, r"reads 1 elements outside 'x_ptr'.*\(element 40\)"),
    (into_a_neighbour_argument, OutOfBoundsError, r"reads 1 elements outside 'x_ptr'"),
    (into_a_hole, OutOfBoundsError, r"reads 8 elements outside 'x_ptr'.*\(element 4\)"),
    (two_programs_store_one_row, RaceError, r"program \(1, 0, 0\).*writes byte 0 of 'y_ptr'.*which program \(0, 0, 0\) wrote"),
    (read_of_what_the_previous_program_wrote, RaceError, r"program \(1, 0, 0\).*reads byte 64 of 'x_ptr'.*which program \(0, 0, 0\) wrote"),
    (two_lanes_store_one_element, RaceError, r"two lanes of one store"),
    (odd_address, MisalignedError, r"4 bytes of 'x_ptr'"),
]


@pytest.mark.parametrize(("bug", "error", "message"), BUGS, ids=[bug.__name__ for bug, _, _ in BUGS])
def test_planted_bug_is_caught_and_passes_silently_unchecked(bug, error, message):
    with interpreted(), pytest.raises(error, match=message):
        bug()
    with interpreted(check=False) as launches:
        bug()
    assert len(launches) == 1


@triton.jit
def read_all_then_write_own(x_ptr, y_ptr, N: tl.constexpr):
    everything = tl.load(x_ptr + tl.arange(0, N))
    tl.store(x_ptr + tl.program_id(0), tl.sum(everything, 0))
    tl.store(y_ptr + tl.program_id(0), tl.sum(everything, 0))


def test_a_write_of_what_others_read_is_caught_whichever_program_came_first():
    with interpreted(), pytest.raises(RaceError, match=r"program \(1, 0, 0\).*reads byte 0 .*which program \(0, 0, 0\) wrote"):
        read_all_then_write_own[(4,)](torch.ones(4), torch.ones(4), N=4)


@triton.jit
def last_writes_what_all_read(x_ptr, y_ptr, WRITER: tl.constexpr):
    program = tl.program_id(0)
    tl.store(y_ptr + program, tl.load(x_ptr))
    if program == WRITER:
        tl.store(x_ptr, 1.0)


def test_a_write_after_reads_of_several_programs_names_another_one():
    with interpreted():
        with pytest.raises(RaceError, match=r"program \(3, 0, 0\).*writes byte 0 of 'x_ptr'.*which program \(0, 0, 0\) read"):
            last_writes_what_all_read[(4,)](torch.zeros(1), torch.zeros(4), WRITER=3)
        last_writes_what_all_read[(1,)](torch.zeros(1), torch.zeros(4), WRITER=0)


def test_clean_kernels_pass():
    x, y = room(), torch.zeros(40)
    index, target = torch.randperm(16, generator=torch.Generator().manual_seed(0)), torch.zeros(16)
    with interpreted():
        copied[(3,)](x, y, 40, 40, BLOCK=16)
        shifted_in_place[(4,)](torch.zeros(64), BLOCK=16, SHIFT=0)
        summed_to_one_row[(4,)](torch.ones(64), target, BLOCK=16, ATOMIC=True)  # the order of atomics is free
        assert torch.equal(target, torch.full((16,), 4.0))
        scattered[(1,)](torch.arange(16.0), index, target, BLOCK=16)
        scattered[(1,)](torch.ones(16), index // 2, target, BLOCK=16)  # equal values: the order of lanes does not matter
    assert torch.equal(x, y)


@triton.jit
def atomic_then_read(x_ptr, y_ptr):
    tl.atomic_add(x_ptr, 1.0)
    tl.store(y_ptr + tl.program_id(0), tl.load(x_ptr))


def test_a_plain_read_races_with_the_atomics_of_others():
    with interpreted(), pytest.raises(RaceError, match=r"updates byte 0 of 'x_ptr'.*which program .* read"):
        atomic_then_read[(2,)](torch.zeros(1), torch.zeros(2))


# ---------------------------------------------------------------- descriptors


@triton.jit
def copied_by_descriptor(x, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr, CLAIM: tl.constexpr):
    target = tl.make_tensor_descriptor(y_ptr, shape=[M + CLAIM, N], strides=[N, 1], block_shape=[BM, BN])  # pyright: ignore[reportArgumentType]
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    target.store([row, column], x.load([row, column]))


def test_descriptors_are_watched_too():
    x, y = torch.randn(20, 24), torch.zeros(40, 24)[:20]
    with interpreted() as launches:
        copied_by_descriptor[(3, 2)](TensorDescriptor.from_tensor(x, [8, 16]), y, 20, 24, BM=8, BN=16, CLAIM=0)
        with pytest.raises(OutOfBoundsError, match="writes 64 elements outside 'y_ptr'"):  # a descriptor that claims 4 rows too many
            copied_by_descriptor[(3, 2)](TensorDescriptor.from_tensor(x, [8, 16]), y, 20, 24, BM=8, BN=16, CLAIM=4)
    assert torch.equal(x, y)
    assert launches[0].arguments["x"].read_bytes == launches[0].arguments["y_ptr"].unique_written_bytes == 20 * 24 * 4


# ---------------------------------------------------------------- counts


@triton.jit
def product(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = tl.load(a_ptr + rows[:, None] * K + inner[None, :], mask=(rows[:, None] < M) & (inner[None, :] < K), other=0.0)
        b = tl.load(b_ptr + inner[:, None] * N + columns[None, :], mask=(inner[:, None] < K) & (columns[None, :] < N), other=0.0)
        total = tl.dot(a, b, total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], total.to(c_ptr.dtype.element_ty), mask=inside)


def test_counts_are_those_made_by_hand():
    with interpreted() as launches:
        a, b, c = torch.randn(50, 90).bfloat16(), torch.randn(90, 70).bfloat16(), torch.zeros(50, 70)
        product[(2, 2)](a, b, c, 50, 70, 90, BM=32, BN=64, BK=32)
    (launch,) = launches
    assert (launch.kernel, launch.grid, launch.programs) == ("product", (2, 2, 1), 4)
    # 2 x 2 programs of 32 x 64, three steps of 32 along the 90: padding counts as operations, not as bytes.
    assert launch.dot_flops == launches.dot_flops() == 4 * 3 * 2 * 32 * 64 * 32
    a, b, c = (launch.arguments[name] for name in ("a_ptr", "b_ptr", "c_ptr"))
    assert (a.read_bytes, a.unique_read_bytes, a.written_bytes) == (2 * 50 * 90 * 2, 50 * 90 * 2, 0)
    assert (b.read_bytes, b.unique_read_bytes, b.written_bytes) == (2 * 90 * 70 * 2, 90 * 70 * 2, 0)
    assert (c.read_bytes, c.written_bytes, c.unique_written_bytes) == (0, 50 * 70 * 4, 50 * 70 * 4)
    assert launch.traffic == launches.traffic() == launches.of("product").traffic() == a + b + c
    assert launches.of("another") == []


def test_shared_bytes_are_unique_once_per_launch_and_in_each_argument():
    whole, out = torch.zeros(60), torch.zeros(30)
    with interpreted() as launches:
        interleaved[(1,)](whole[::2], whole[1::2], whole, out, BLOCK=16, N=30)
    launch = launches[0]
    assert [launch.arguments[name].unique_read_bytes for name in ("even_ptr", "odd_ptr", "all_ptr")] == [64, 64, 128]
    assert (launch.traffic.read_bytes, launch.traffic.unique_read_bytes) == (64 + 64 + 64, 128)


@triton.jit
def interleaved(even_ptr, odd_ptr, all_ptr, out_ptr, BLOCK: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(even_ptr + 2 * at) + tl.load(odd_ptr + 2 * at) + tl.load(all_ptr + at))


@triton.jit
def mixed_widths(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    words = tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + at)
    tl.store(y_ptr + at, words + tl.load(x_ptr + at).to(tl.int32))


def test_bytes_read_as_bytes_and_as_words_are_unique_bytes():
    x = torch.zeros(64, dtype=torch.int32)
    with interpreted() as launches:
        mixed_widths[(1,)](x.view(torch.uint8), torch.zeros(16, dtype=torch.int32), BLOCK=16)
        mixed_widths[(1,)](x, torch.zeros(16, dtype=torch.int32), BLOCK=16)
    assert [launch.arguments["x_ptr"].read_bytes for launch in launches] == [64 + 16, 64 + 64]
    assert [launch.arguments["x_ptr"].unique_read_bytes for launch in launches] == [64, 64]


@triton.jit
def both_ends(x_ptr, distance, WIDEN: tl.constexpr):
    program = tl.program_id(0)
    if WIDEN:
        program = program.to(tl.int64)
    at = program * distance + tl.arange(0, 64)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + 1.0)


def test_a_tensor_of_more_than_2_31_elements_is_watched_without_being_touched():
    x = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # 4 GiB of addresses, of which the two ends become memory
    x[:64], x[-64:] = 0, 1
    with interpreted() as launches:
        both_ends[(2,)](x, 2**30, WIDEN=True)
        both_ends[(3,)](x, 2**30, WIDEN=True)
        with pytest.raises(OverflowError, match="2147483648"):
            both_ends[(3,)](x, 2**30, WIDEN=False)
    assert launches[1].traffic == Traffic(3 * 128, 3 * 128, 3 * 128, 3 * 128)
    assert (x[0].item(), x[-1].item()) == (3.0, 2.0)
