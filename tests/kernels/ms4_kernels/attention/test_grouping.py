"""Rectangles of documents: every token there and back, gradients too, few calls, and memory linear in the tokens."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.attention.grouping import DocumentGroups

ROWS = {
    "one": (50,),
    "equal": (8, 8, 8),
    "short": (3, 60, 17, 1, 44),
    "mixed": (300, 5, 260, 90, 71, 64, 1, 299),
}


@pytest.mark.parametrize("name", ROWS)
def test_tokens_return_to_their_places(name):
    lengths = ROWS[name]
    groups = DocumentGroups.from_lengths(lengths)
    x = torch.randn(sum(lengths), 2, 3)
    assert torch.equal(groups.collect(groups.spread(x)), x)
    assert sum(rectangle.count for rectangle in groups.rectangles) == len(lengths)


@pytest.mark.parametrize("name", ROWS)
def test_each_document_fills_one_line_of_a_rectangle(name):
    lengths = ROWS[name]
    groups = DocumentGroups.from_lengths(lengths)
    document_s = groups.spread(torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths)))
    found = []
    for rectangle in groups.rectangles:
        for line_l in document_s[rectangle.slots].unflatten(0, (rectangle.count, rectangle.length)):
            document = int(line_l[0])
            assert line_l.tolist() == [document] * lengths[document - 1] + [0] * (rectangle.length - lengths[document - 1])
            found.append(document)
    assert sorted(found) == list(range(1, len(lengths) + 1))


def test_gradients_by_finite_differences():
    groups = DocumentGroups.from_lengths((3, 1, 2))
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(groups.spread, (x,))
    assert torch.autograd.gradcheck(groups.collect, (y,))


def test_many_documents_need_few_rectangles_and_little_padding():
    lengths = tuple(torch.randint(20, 2000, (200,), generator=torch.Generator().manual_seed(0)).tolist())
    groups = DocumentGroups.from_lengths(lengths)
    assert len(groups.rectangles) <= 16
    assert groups.token_s is not None
    assert groups.token_s.numel() <= 1.34 * sum(lengths)  # no line is less than three quarters full


@pytest.mark.parametrize("name", ROWS)
def test_without_padding_only_equal_lengths_share_a_rectangle(name):
    lengths = ROWS[name]
    groups = DocumentGroups.from_lengths(lengths, padded=False)
    found = [rectangle.length for rectangle in groups.rectangles for _ in range(rectangle.count)]
    assert sorted(found) == sorted(lengths)
    assert len(groups.rectangles) == len(set(lengths))
    x = torch.randn(sum(lengths), 2)
    assert groups.spread(x).shape == x.shape  # no slot but tokens
    assert torch.equal(groups.collect(groups.spread(x)), x)


def test_short_documents_share_one_rectangle():
    assert len(DocumentGroups.from_lengths((64, 16, 33, 50)).rectangles) == 1


def test_many_tiny_documents_beside_a_short_one_are_not_blown_up():
    groups = DocumentGroups.from_lengths((64, *(1,) * 500))
    assert groups.token_s is not None
    assert groups.token_s.numel() == 564


def test_equal_lengths_are_not_copied():
    x = torch.randn(24, 2)
    assert DocumentGroups.from_lengths((8, 8, 8)).spread(x) is x
