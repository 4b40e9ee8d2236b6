"""Tables against plain indexing, over the edges of chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ms4_kernels.quantised import lookup
from ms4_kernels.quantised.lookup import bits_of, joined, look_up_pairs, pays, tabulate, take


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [2, 2 * lookup._CHUNK, 2 * lookup._CHUNK + 2, 5 * lookup._CHUNK - 2])
def test_pairs_equal_indexing(dtype, size):
    codes = torch.randint(0, 256, (size,), dtype=torch.uint8)
    table = torch.randint(0, 200, (256,)).to(dtype)
    out = torch.full((size,), 7, dtype=dtype)
    look_up_pairs(codes, table, out)
    assert torch.equal(out, table[codes.int()])


def test_pairs_at_an_odd_address():
    codes = torch.randint(0, 256, (1001,), dtype=torch.uint8)[1:]
    table = torch.rand(256)
    out = torch.empty(1000)
    look_up_pairs(codes, table, out)
    assert torch.equal(out, table[codes.int()])


def test_tabulate_covers_every_bit_pattern():
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).view(256, 256)
    out = tabulate(values, lambda x: (x.float() * 3).to(torch.bfloat16))
    assert torch.equal(out.nan_to_num(), (values.float() * 3).to(torch.bfloat16).nan_to_num())
    assert torch.equal(out.isnan(), values.isnan())
    strided = values.t()
    assert torch.equal(tabulate(strided, lambda x: x.isfinite()), strided.isfinite())


def test_take_writes_where_it_should():
    out = np.zeros(3 * lookup._CHUNK + 5, np.uint16)
    take(np.arange(10, dtype=np.uint16), np.full(out.size, 9, np.uint8), out)
    assert (out == 9).all()


def test_bits_share_memory():
    values = torch.zeros(4, dtype=torch.bfloat16)
    bits_of(values)[1] = 0x3F80
    joined(bits_of(values))[1] = 0x40003F80
    assert values.tolist() == [0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "expected"),
    [
        ((64, 4096), "cpu", torch.bfloat16, True),
        ((64, 4096), "cpu", torch.float32, True),
        ((64, 4096), "cpu", torch.float64, False),
        ((64, 4096), "meta", torch.bfloat16, False),
        ((4096, 63), "cpu", torch.bfloat16, False),
        ((4, 4), "cpu", torch.bfloat16, False),
    ],
)
def test_when_tables_are_used(shape, device, dtype, expected):
    assert pays(torch.empty(shape, dtype=torch.uint8, device=device), dtype) == expected
