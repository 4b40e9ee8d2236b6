"""Sequence layouts: positions from boundaries, masks from either side, and refusals."""

from __future__ import annotations

import pytest
import torch

from ms4_train.model import SequenceLayout


def test_positions_restart_at_each_document():
    layout = SequenceLayout.from_lengths([3, 1, 2])
    assert layout.position_t.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.sequence_t.tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.cu_seqlens_b.tolist() == [0, 3, 4, 6]
    assert (layout.num_tokens, layout.is_fresh, layout.stops) == (6, True, (3, 1, 2))


def test_continued_sequences_count_on():
    layout = SequenceLayout((1, 2), starts=(7, 0), slots=(4, 2))
    assert layout.position_t.tolist() == [7, 0, 1]
    assert layout.slot_t.tolist() == [4, 2, 2]
    assert (layout.stops, layout.is_fresh) == ((8, 2), False)


def test_boundaries_and_masks_give_the_same_layout():
    expected = SequenceLayout((2, 3, 1))
    assert SequenceLayout.from_cu_seqlens(torch.tensor([0, 2, 5, 6], dtype=torch.int32)) == expected
    assert SequenceLayout.from_attention_mask(torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])) == expected
    assert SequenceLayout.from_attention_mask(torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])) == expected


@pytest.mark.parametrize("row", [[1, 0, 1], [0, 0, 0]])
def test_masks_with_holes_or_nothing_are_refused(row):
    with pytest.raises(ValueError, match="one unbroken run"):
        SequenceLayout.from_attention_mask(torch.tensor([[1, 1, 1], row]))


@pytest.mark.parametrize("boundaries", [[0], [1, 3], [0, 3, 3], [0, 3, 2], [[0, 1]]])
def test_bad_boundaries_are_refused(boundaries):
    with pytest.raises(ValueError, match=r"cu_seqlens|at least one token"):
        SequenceLayout.from_cu_seqlens(torch.tensor(boundaries))


@pytest.mark.parametrize(
    "arguments",
    [((),), ((3, 0),), ((3,), (1, 1)), ((3,), (-1,)), ((3, 1), (), (0,)), ((3, 1), (), (0, 0))],
)
def test_bad_layouts_are_refused(arguments):
    with pytest.raises(ValueError, match="sequence"):
        SequenceLayout(*arguments)


def test_slots_are_needed_only_for_a_cache():
    with pytest.raises(ValueError, match="slots"):
        _ = SequenceLayout((2,)).slot_t
