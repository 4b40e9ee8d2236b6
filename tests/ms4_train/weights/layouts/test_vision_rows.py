"""The order of rows against the formula of transformers' converter (spec section 3.1) and the factories of the tests."""

import pytest
import torch
from support.layouts import permute_vision_rows

from ms4_train.weights.layouts.vision_rows import to_hf_rows, to_native_rows


@pytest.mark.parametrize(("heads", "width", "columns"), [(16, 64, 1024), (2, 4, 3), (1, 8, 1)])
def test_rows_as_the_converter_orders_them(heads, width, columns):
    native = torch.arange(heads * width * columns).view(heads * width, columns)
    expected = native.view(heads, width // 2, 2, columns).transpose(1, 2).reshape(heads * width, columns)
    assert torch.equal(to_hf_rows(native, heads), expected)
    assert torch.equal(to_native_rows(expected, heads), native)
    assert torch.equal(to_native_rows(expected, heads), permute_vision_rows(expected, heads, to_native=True))
    assert not torch.equal(expected, native)
