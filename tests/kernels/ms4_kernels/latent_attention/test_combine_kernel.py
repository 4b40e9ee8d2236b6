"""Joining splits: softmax over their parts, empty ones left out, and unread."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from support.mutations import plant
from support.triton_interpreter import interpreted

from ms4_kernels.latent_attention import combine_kernel

ROWS, LATENT = 5, 20


def join(part_krc, lse_kr):
    out_rc = torch.empty(ROWS, LATENT)
    with interpreted():
        launch: Any = combine_kernel.combine_splits_kernel[(ROWS,)]
        launch(part_krc, lse_kr, out_rc, len(lse_kr), ROWS, LATENT=LATENT, BLOCK_C=32)
    return out_rc


def parts(splits, used):
    """Random parts, of which a row has the first ``used``; the others are NaN."""
    part_krc, lse_kr = torch.randn(splits, ROWS, LATENT), 5 * torch.randn(splits, ROWS)
    part_krc[used:], lse_kr[used:] = torch.nan, -torch.inf
    return part_krc, lse_kr


def worst(splits, used) -> float:
    part_krc, lse_kr = parts(splits, used)
    weight_kr = (lse_kr[:used].double() * torch.log(torch.tensor(2.0, dtype=torch.float64))).softmax(dim=0)
    return float((join(part_krc, lse_kr) - (weight_kr[..., None] * part_krc[:used]).sum(0)).abs().max())


@pytest.mark.parametrize(("splits", "used"), [(1, 1), (4, 4), (4, 2), (9, 7)])
def test_is_the_softmax_over_splits(splits, used):
    # Each of at most nine terms of size 4 is scaled and added: a few roundings of 2^-24.
    assert worst(splits, used) < 1e-5


def test_empty_splits_change_no_bit():
    part_krc, lse_kr = parts(6, 3)
    assert torch.equal(join(part_krc, lse_kr), join(part_krc[:3].contiguous(), lse_kr[:3].contiguous()))


def test_nothing_seen_gives_zeros_and_nan_shows():
    part_krc, lse_kr = parts(3, 3)
    lse_kr[:, 1], lse_kr[1, 2] = -torch.inf, torch.nan
    found_rc = join(part_krc, lse_kr)
    assert not found_rc[1].any()
    assert found_rc[2].isnan().all()
    assert found_rc[[0, 3, 4]].isfinite().all()


@pytest.mark.parametrize(
    ("old", "new"), [("mixed_c * shrink", "mixed_c"), ("total = total * shrink", "total = total"), ("weight * part_c", "part_c")]
)
def test_planted_bugs_are_caught(monkeypatch, tmp_path, old, new):
    assert worst(4, 4) < 1e-5
    plant(monkeypatch, tmp_path, combine_kernel, old, new)
    assert not worst(4, 4) < 1e-5
