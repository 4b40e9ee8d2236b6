"""Batches: targets shifted inside each document."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.image_rows import png
from support.rows import tool_row
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import read_row
from ms4_train.data import NO_LOSS
from ms4_train.data.batch import filler_batch, make_batch
from ms4_train.data.rows import Document
from ms4_train.model import ImageBatch
from ms4_train.untrusted import inspect_image


def document(row_id: str, tokens: list[int], mask: list[int]) -> Document:
    return Document(row_id, np.array(tokens, dtype=np.int32), np.array(mask, dtype=np.bool_))


def test_targets_by_hand() -> None:
    batch = make_batch([document("a:1", [1, 10, 11, 2], [0, 0, 1, 1]), document("b:4", [1, 20, 2], [1, 1, 0])])
    assert batch.input_ids_t.tolist() == [1, 10, 11, 2, 1, 20, 2]
    assert batch.target_ids_t.tolist() == [NO_LOSS, 11, 2, NO_LOSS, 20, NO_LOSS, NO_LOSS]
    assert (batch.lengths, batch.row_ids, batch.num_trained, batch.num_tokens) == ((4, 3), ["a:1", "b:4"], 3, 7)
    assert batch.input_ids_t.dtype == batch.target_ids_t.dtype == torch.int64


def test_no_target_crosses_a_document() -> None:
    alone = [make_batch([document(str(n), [1, n, n + 1, 2], [1, 1, 1, 1])]) for n in (20, 30)]
    together = make_batch([document(str(n), [1, n, n + 1, 2], [1, 1, 1, 1]) for n in (20, 30)])
    assert together.target_ids_t.tolist() == alone[0].target_ids_t.tolist() + alone[1].target_ids_t.tolist()


def test_the_loss_is_that_of_the_trained_tokens_alone() -> None:
    # The same number by another way: log-probabilities of exactly the tokens that the mask names, each after its predecessor.
    encoded = tiny_tokenizer().encode_row(read_row(tool_row()))
    batch = make_batch([document("a:1", encoded.token_ids, [int(trained) for trained in encoded.loss_mask])])
    logits_tv = torch.randn(batch.num_tokens, tiny_tokenizer().vocab_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = F.cross_entropy(logits_tv, batch.target_ids_t, reduction="sum", ignore_index=NO_LOSS)
    log_probabilities_tv = logits_tv.log_softmax(-1)
    expected = -sum(log_probabilities_tv[i - 1, t] for i, t in enumerate(encoded.token_ids) if encoded.loss_mask[i])
    torch.testing.assert_close(loss, torch.as_tensor(expected), rtol=1e-12, atol=0)
    assert batch.num_trained == encoded.num_trained


def test_filler_has_no_loss() -> None:
    batch = filler_batch(1, 2)
    assert (batch.input_ids_t.tolist(), batch.target_ids_t.tolist(), batch.num_trained) == ([1, 2], [NO_LOSS] * 2, 0)


def test_images_are_those_of_the_documents() -> None:
    image = inspect_image(png(0))
    seeing = replace(document("a:1", [1, 10, 2], [0, 0, 1]), images=(image,))
    pixels = ImageBatch(torch.zeros(4, 588), ((2, 2),))
    assert make_batch([seeing], pixels).images is pixels
    assert make_batch([document("a:1", [1, 10, 2], [0, 0, 1])]).images is None
    for documents, images in (([seeing], None), ([seeing, seeing], pixels)):
        with pytest.raises(AssertionError):
            make_batch(documents, images)
