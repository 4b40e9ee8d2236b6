"""What is derived from the lengths of documents, and that it is made once."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import documents_of


def test_boundaries_and_documents():
    documents = documents_of((3, 1, 2))
    assert documents.cu_seqlens_b.tolist() == [0, 3, 4, 6]
    assert documents.cu_seqlens_b.dtype == torch.int32  # what FlashAttention takes
    assert documents.document_t.tolist() == [0, 0, 0, 1, 2, 2]
    assert (documents.num_tokens, documents.longest) == (6, 3)


@pytest.mark.parametrize("name", ["groups", "equal_groups", "cu_seqlens_b", "document_t", "block_mask", "full_block_mask"])
def test_made_once(name):
    documents = documents_of((3, 1, 2))
    assert getattr(documents, name) is getattr(documents, name)


@pytest.mark.parametrize("lengths", [(), (3, 0, 2)])
def test_documents_without_tokens_are_refused(lengths):
    with pytest.raises(ValueError, match="at least one token"):
        documents_of(lengths)
