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
    assert (layout.num_tokens, layout.num_fresh, layout.stops) == (6, 3, (3, 1, 2))


def test_continued_sequences_count_on():
    layout = SequenceLayout((1, 2), starts=(7, 0), slots=(4, 2))
    assert layout.position_t.tolist() == [7, 0, 1]
    assert layout.tables == ((4,), (2,))
    assert (layout.stops, layout.num_fresh) == ((8, 2), 0)
    assert SequenceLayout((1, 2, 1), starts=(0, 7, 0)).num_fresh == 1  # at the front only


def test_tables_of_uneven_length_are_padded():
    layout = SequenceLayout((1, 2, 1), (70, 3, 0), blocks=((5, 9, 2), (7,), (5, 1)))
    assert layout.table_bj.tolist() == [[5, 9, 2], [7, 0, 0], [5, 1, 0]]  # a block may be shared: prompts that begin alike
    assert layout.table_bj.dtype == torch.int32


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


def test_blocks_are_needed_only_for_a_cache():
    with pytest.raises(ValueError, match="slots or blocks"):
        _ = SequenceLayout((2,)).tables


@pytest.mark.parametrize("given", [{"blocks": ((0,),)}, {"blocks": ((0,), (1,)), "slots": (0, 1)}])
def test_one_list_of_blocks_for_each_sequence_and_no_slots(given):
    with pytest.raises(ValueError, match="as many lists of blocks and no slots"):
        SequenceLayout((1, 1), **given)
