"""The plan of a forward pass: which tokens take which form of attention, where latents are written, and when the query scale applies."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config

from ms4_train.model import DenseLatentCache, RopeParameters, SequenceLayout
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.rope import RotaryTable

CONFIG = tiny_config(rope_parameters=RopeParameters(original_max_position_embeddings=10))
CPU = torch.device("cpu")


def build(layout, cache=None, **options):
    return AttentionPlan.build(layout, CONFIG, RotaryTable(CONFIG), CPU, cache, **options)


@pytest.fixture
def cache():
    return DenseLatentCache(CONFIG, slots=8, max_len=4)


def forms(plan):
    """Lengths of the sequences in the expanded and in the absorbed form."""
    return (
        None if plan.documents is None else plan.documents.lengths,
        None if plan.latents is None else (plan.latents.starts, plan.latents.sequence_t.bincount().tolist()),
    )


def test_fresh_sequences_at_the_front_are_expanded_and_all_others_absorbed(cache):
    assert forms(build(SequenceLayout((4, 2)))) == ((4, 2), None)
    blocks = ((0, 1), (2,), (3, 4), (5,))
    plan = build(SequenceLayout((4, 2, 3, 1), (0, 0, 5, 0), blocks=blocks), cache)
    assert forms(plan) == ((4, 2), ((5, 0), [3, 1]))
    assert plan.num_expanded == 6
    assert plan.latents is not None
    assert plan.latents.tables_bj.tolist() == [[3, 4], [5, 0]]
    plan = build(SequenceLayout((4, 2), (0, 0), blocks=blocks[:2]), cache, expands=False)
    assert forms(plan) == (None, ((0, 0), [4, 2]))
    assert plan.num_expanded == 0


def test_latents_are_written_to_the_sequences_blocks(cache):
    plan = build(SequenceLayout((2, 3, 1), (0, 3, 1), blocks=((6,), (5, 2), (7,))), cache)
    assert plan.slot_t is not None
    assert plan.slot_t.tolist() == [24, 25, 23, 8, 9, 29]  # 6 * 4 + 0 ..; 5 * 4 + 3, 2 * 4 + 0 ..; 7 * 4 + 1
    assert build(SequenceLayout((2,))).slot_t is None


def test_what_continues_needs_a_cache_with_room(cache):
    with pytest.raises(ValueError, match="need the cache that holds them"):
        build(SequenceLayout((1,), (4,), (0,)))
    with pytest.raises(ValueError, match="does not fit a cache of 4"):
        build(SequenceLayout((1,), (4,), (0,)), cache)


def test_a_plan_of_decoding_equals_the_plan_of_its_layout(cache):
    starts, blocks = (3, 0, 6), ((1,), (4,), (2, 7))
    expected = build(SequenceLayout((1, 1, 1), starts, blocks=blocks), cache, expands=False)
    table_bj = SequenceLayout((1, 1, 1), starts, blocks=blocks).table_bj
    padded_bj = torch.cat((table_bj, torch.full((1, 2), 99, dtype=torch.int32)))
    plan = AttentionPlan.decode(padded_bj, torch.tensor([*starts, -1]), CONFIG, RotaryTable(CONFIG), cache)
    assert plan.slot_t is not None
    assert expected.slot_t is not None
    assert plan.slot_t.tolist() == [*expected.slot_t.tolist(), -1]
    assert torch.equal(plan.cos_tp[:3], expected.cos_tp)
    assert torch.equal(plan.signed_sin_tp[:3], expected.signed_sin_tp)
    assert (plan.num_tokens, plan.documents, plan.num_expanded) == (4, None, 0)


def test_a_plan_of_decoding_scales_queries_where_the_tables_reach_past_the_original_context(cache):
    """What positions are is known to the device alone, so the bound is what the tables hold."""
    short = AttentionPlan.decode(torch.zeros(2, 2, dtype=torch.int32), torch.tensor([7, -1]), CONFIG, RotaryTable(CONFIG), cache)
    assert short.query_scale_t is None
    long = AttentionPlan.decode(torch.zeros(3, 4, dtype=torch.int32), torch.tensor([12, 9, -1]), CONFIG, RotaryTable(CONFIG), cache)
    assert long.query_scale_t is not None
    assert (long.query_scale_t > 1).tolist() == [True, False, False]
    assert long.query_scale_t[1:].tolist() == [1, 1]


def test_an_empty_plan_has_no_tokens():
    plan = AttentionPlan.empty(RotaryTable(CONFIG), CPU)
    assert plan.num_tokens == 0
    assert forms(plan) == (None, None)


def test_query_scale_is_left_out_where_it_is_one(cache):
    assert build(SequenceLayout((10, 3))).query_scale_t is None
    scale_t = build(SequenceLayout((11, 3))).query_scale_t
    assert scale_t is not None
    assert (scale_t > 1).tolist() == [False] * 10 + [True] + [False] * 3
    assert build(SequenceLayout((1,), (10,), blocks=((0, 1, 2),)), cache).query_scale_t is not None


def test_tables_follow_positions_not_places():
    plan = build(SequenceLayout((3, 2)))
    assert torch.equal(plan.cos_tp[3:], plan.cos_tp[:2])
    assert torch.equal(plan.signed_sin_tp[3:], plan.signed_sin_tp[:2])
