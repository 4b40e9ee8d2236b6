"""Runs of documents: every token once, long documents untouched, short ones together."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import ROWS

from ms4_kernels.attention.runs import runs_of


@pytest.mark.parametrize("row", ROWS)
def test_every_document_is_in_one_line_of_one_run(row):
    lengths = ROWS[row]
    document_t = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
    found = []
    for run in runs_of(lengths):
        for line in run.take(document_t).unflatten(0, (run.count, run.length)):
            document = int(line[0])
            assert line.tolist() == [document] * lengths[document - 1] + [0] * (run.length - lengths[document - 1])
            found.append(document)
    assert sorted(found) == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize("row", ROWS)
def test_what_is_taken_can_be_put_back(row):
    x = torch.randn(sum(ROWS[row]), 2)
    out = torch.full_like(x, torch.nan)
    for run in runs_of(ROWS[row]):
        if run.token_s is None:
            run.take(out).copy_(run.take(x))
        else:
            run.put(out, run.take(x))
    assert torch.equal(out, x)


def test_long_documents_and_equal_neighbours_are_views():
    x = torch.randn(700, 2)
    runs = runs_of((200, 100, 100, 300))
    assert [(run.count, run.length) for run in runs] == [(1, 200), (2, 100), (1, 300)]
    assert all(run.take(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for run in runs)
    assert runs_of((20, 20, 20))[0].token_s is None


def test_short_documents_share_rectangles():
    runs = runs_of(tuple(torch.randint(1, 64, (200,), generator=torch.Generator().manual_seed(0)).tolist()))
    assert len(runs) <= 4
