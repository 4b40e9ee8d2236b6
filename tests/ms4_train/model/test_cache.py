"""The dense latent cache: what is appended comes back, from any slots, and nothing is written past a slot's end."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config

from ms4_train.model import DenseLatentCache, SequenceLayout


@pytest.fixture
def cache():
    return DenseLatentCache(tiny_config(), slots=4, max_len=8)


@pytest.mark.parametrize("slots", [(0, 1), (2, 3), (3, 1)], ids=["first", "consecutive", "scattered"])
def test_context_holds_all_that_was_appended(cache, slots):
    latent_tc = torch.randn(9, tiny_config().latent_dim)
    first, second = SequenceLayout((4, 2), slots=slots), SequenceLayout((1, 2), (4, 2), slots)
    cache.append(1, latent_tc[:6], first)
    cache.append(1, latent_tc[6:], second)
    context_bsc = cache.context(1, second)
    assert context_bsc.shape == (2, 5, latent_tc.shape[1])
    assert torch.equal(context_bsc[0], latent_tc[[0, 1, 2, 3, 6]])
    assert torch.equal(context_bsc[1, :4], latent_tc[[4, 5, 7, 8]])
    assert not cache.context(0, second).any()  # another layer


def test_a_sequence_cannot_outgrow_its_slot(cache):
    cache.append(0, torch.ones(8, 24), SequenceLayout((8,), slots=(2,)))
    with pytest.raises(ValueError, match="9 tokens does not fit a cache of 8"):
        cache.append(0, torch.ones(1, 24), SequenceLayout((1,), (8,), (2,)))


def test_slots_are_required(cache):
    with pytest.raises(ValueError, match="slots"):
        cache.append(0, torch.ones(2, 24), SequenceLayout((2,)))
    with pytest.raises(ValueError, match="slots"):
        cache.context(0, SequenceLayout((2,)))


def test_stored_values_carry_no_gradient_and_the_caches_type():
    cache = DenseLatentCache(tiny_config(), slots=1, max_len=2, dtype=torch.bfloat16)
    layout = SequenceLayout((2,), slots=(0,))
    cache.append(0, torch.randn(2, 24, requires_grad=True), layout)
    context_bsc = cache.context(0, layout)
    assert context_bsc.dtype == torch.bfloat16
    assert not context_bsc.requires_grad
