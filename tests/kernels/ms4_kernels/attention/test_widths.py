"""Padding to one width changes no score and no output."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.attention.widths import padded_to_one_width


@pytest.mark.parametrize(("key_width", "value_width"), [(4, 4), (4, 7), (7, 4)])
def test_scores_and_values_stay(key_width, value_width):
    query, key, value = torch.randn(5, key_width), torch.randn(5, key_width), torch.randn(5, value_width)
    wide_query, wide_key, wide_value = padded_to_one_width(query, key, value)
    assert wide_query.shape == wide_key.shape == wide_value.shape == (5, max(key_width, value_width))
    torch.testing.assert_close(wide_query @ wide_key.T, query @ key.T)
    assert torch.equal(wide_value[:, :value_width], value)
    assert not wide_value[:, value_width:].any()


def test_equal_widths_are_not_copied():
    given = [torch.randn(5, 4) for _ in range(3)]
    assert all(got is x for got, x in zip(padded_to_one_width(*given), given, strict=True))
