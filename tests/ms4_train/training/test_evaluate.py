"""Validation loss against torch's cross-entropy on all logits."""

import pytest
import torch
from support.models import tiny_model

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection
from ms4_train.data import PackedBatch
from ms4_train.model import SequenceLayout
from ms4_train.parallel import Mesh
from ms4_train.training.evaluate import validation_loss


def batch(lengths, seed, masked=()):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 512, (sum(lengths),), generator=generator)
    targets = ids.roll(-1)
    targets[list(masked)] = -100
    return PackedBatch(ids, targets, lengths, ["row"] * len(lengths), int((targets != -100).sum()))


def test_mean_is_over_tokens_not_batches():
    model = tiny_model()
    batches = [batch((5, 9), 1, masked=(0, 1, 2)), batch((3,), 2)]
    total = 0.0
    with torch.no_grad():
        for item in batches:
            logits = model.logits(model(item.input_ids_t, SequenceLayout.from_lengths(item.lengths)))
            total += float(torch.nn.functional.cross_entropy(logits, item.target_ids_t, ignore_index=-100, reduction="sum"))
    result = validation_loss(model, batches, Mesh(), chunk_tokens=4)
    assert result == {"eval_loss": pytest.approx(total / 14, rel=1e-5), "eval_tokens": 14}


def test_model_is_left_as_it_was():
    model = tiny_model().train()
    validation_loss(model, [batch((4,), 1)], Mesh(), chunk_tokens=4)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    validation_loss(model, [batch((4,), 1)], Mesh(), chunk_tokens=4)
    assert not model.training


def test_dropout_of_an_adapter_is_off():
    """The loss does not depend on random numbers; in training mode the same passes differ (the negative control)."""
    model = tiny_model()
    attach(model, AdapterSection(r=4, lora_dropout=0.5, target_modules=["o_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    item = batch((6, 5), 1)
    model.train()
    losses = {validation_loss(model, [item], Mesh(), chunk_tokens=4)["eval_loss"] for _ in range(3)}
    assert len(losses) == 1
    with torch.no_grad():
        hidden = [model(item.input_ids_t, SequenceLayout.from_lengths(item.lengths)) for _ in range(2)]
    assert not torch.equal(*hidden)


def test_batches_without_loss_count_nothing():
    assert validation_loss(tiny_model(), [batch((2,), 1, masked=(0, 1))], Mesh(), chunk_tokens=4) == {"eval_loss": 0.0, "eval_tokens": 0}


def test_it_can_be_given_up_between_batches():
    model = tiny_model().train()
    answers = iter([False, True])
    result = validation_loss(model, [batch((4,), seed) for seed in range(3)], Mesh(), chunk_tokens=4, should_stop=lambda: next(answers))
    assert result == {}
    assert model.training
    assert next(answers, None) is None
