"""The plan of a forward pass: which form of attention, which positions are seen, and when the query scale applies."""

from __future__ import annotations

import torch
from support.models import tiny_config

from ms4_train.model import RopeParameters, SequenceLayout
from ms4_train.model.plan import AttentionPlan, QueryGrid
from ms4_train.model.rope import RotaryTable

CONFIG = tiny_config(rope_parameters=RopeParameters(original_max_position_embeddings=10))
CPU = torch.device("cpu")


def build(layout):
    return AttentionPlan.build(layout, CONFIG, RotaryTable(CONFIG), CPU)


def test_fresh_sequences_are_grouped_and_continued_ones_laid_on_a_grid():
    fresh, continued = build(SequenceLayout((4, 2))), build(SequenceLayout((4, 2), (0, 3), (0, 1)))
    assert (fresh.documents is None, fresh.grid is None) == (False, True)
    assert (continued.documents is None, continued.grid is None) == (True, False)


def test_query_scale_is_left_out_where_it_is_one():
    assert build(SequenceLayout((10, 3))).query_scale_t is None
    scale_t = build(SequenceLayout((11, 3))).query_scale_t
    assert scale_t is not None
    assert (scale_t > 1).tolist() == [False] * 10 + [True] + [False] * 3
    assert build(SequenceLayout((1,), (10,), (0,))).query_scale_t is not None


def test_grid_lets_each_query_see_itself_and_what_came_before():
    grid = QueryGrid.from_layout(SequenceLayout((2, 1), (3, 0), (0, 1)), CPU)
    assert grid.token_bq.tolist() == [[0, 1], [2, 0]]
    assert grid.cell_t.tolist() == [0, 1, 2]
    seen_bqs = ~grid.hidden_bqs
    assert seen_bqs[0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen_bqs[1, 0].int().tolist() == [1, 0, 0, 0, 0]


def test_tables_follow_positions_not_places():
    plan = build(SequenceLayout((3, 2)))
    assert torch.equal(plan.cos_tp[3:], plan.cos_tp[:2])
    assert torch.equal(plan.signed_sin_tp[3:], plan.signed_sin_tp[:2])
