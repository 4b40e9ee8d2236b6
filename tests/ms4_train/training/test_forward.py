"""Packed rows of text and images give the loss and the gradients of the rows alone, from files to the loss, vision parameters included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.image_rows import mixed_rows
from support.models import tiny_config, tiny_model
from support.multimodal import tiny_multimodal, tiny_vision
from support.rows import write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import PackedBatch, build_loader, prepare
from ms4_train.errors import TokenizerError, TrainingError
from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration
from ms4_train.training.forward import hidden_states, require_vision
from ms4_train.training.loss import next_token_loss

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Of the largest value of each tensor. Measured: 1.9e-6 and 1.9e-15; packing changes the order of sums and nothing else."""


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PackedBatch, list[PackedBatch]]]:
    """One packed batch of six rows (four images in it), and the six rows alone, all by the loader."""
    folder = tmp_path_factory.mktemp("rows")
    path = write_rows(folder / "rows.jsonl", mixed_rows(folder, 6))
    common: dict[str, Any] = {"train": [DatasetSource(path=str(path))], "shuffle": False, "images": {"workers": 1}}
    packed, alone = DataSection(max_length=400, **common), DataSection(packing=False, **common)
    prepared = prepare(packed, tiny_tokenizer())
    together = build_loader(packed, tiny_tokenizer(), batch_size=1, seed=0, prepared=prepared)
    separate = build_loader(alone, tiny_tokenizer(), batch_size=1, seed=0, prepared=prepared)
    yield together.next_batch(), [separate.next_batch() for _ in range(6)]
    prepared.workers.close()


@pytest.fixture(scope="module", params=TOLERANCE, ids=["fp32", "fp64"])
def model(request: pytest.FixtureRequest) -> Mistral3ForConditionalGeneration:
    model = tiny_multimodal(tiny_config(vocab_size=tiny_tokenizer().vocab_size), dtype=request.param)
    model.train()
    return model


def loss_and_gradients(model: Mistral3ForConditionalGeneration, batches: list[PackedBatch]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total = torch.zeros((), dtype=model.lm_head.weight.dtype)
    for batch in batches:
        nll = next_token_loss(model.lm_head, hidden_states(model, batch, CPU), batch.target_ids_t)
        nll.backward()
        total += nll.detach()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": total, **found}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-30)) for name in expected)


def test_packed_rows_give_loss_and_gradients_of_the_rows_alone(
    batches: tuple[PackedBatch, list[PackedBatch]], model: Mistral3ForConditionalGeneration
) -> None:
    packed, alone = batches
    assert packed.images is not None
    assert len(packed.images.grids) == 4
    assert len(set(packed.images.grids)) > 1
    assert packed.row_ids == [row for batch in alone for row in batch.row_ids]
    assert sum(batch.images is None for batch in alone) == 3
    expected = loss_and_gradients(model, alone)
    for name in ("vision_tower.patch_conv.weight", "multi_modal_projector.linear_1.weight", "model.layers.0.mlp.experts.down_proj"):
        assert expected[name].abs().max() > 1e-6, f"{name} has no gradient to compare"
    assert worst(loss_and_gradients(model, [packed]), expected) < TOLERANCE[model.lm_head.weight.dtype]


def test_what_packing_must_not_do_is_noticed(
    batches: tuple[PackedBatch, list[PackedBatch]], model: Mistral3ForConditionalGeneration
) -> None:
    """Negative controls: rows that see each other, images that change places, images that see each other."""
    packed, alone = batches
    expected, images = loss_and_gradients(model, alone), packed.images
    assert images is not None
    parts = list(images.patches_pi.split(list(images.lengths)))
    same = [index for index in range(len(parts)) if images.grids.count(images.grids[index]) > 1][:2]
    one_document = replace(packed, lengths=(packed.num_tokens,))
    turned = [*range(1, len(parts)), 0]
    moved = ImageBatch(torch.cat([parts[i] for i in turned]), tuple(images.grids[i] for i in turned))
    wrong = {"one document": one_document, "images moved on": replace(packed, images=moved)}
    if len(same) == 2:
        parts[same[0]], parts[same[1]] = parts[same[1]], parts[same[0]]
        wrong["images swapped"] = replace(packed, images=ImageBatch(torch.cat(parts), images.grids))
    for name, batch in wrong.items():
        assert worst(loss_and_gradients(model, [batch]), expected) > 100 * TOLERANCE[model.lm_head.weight.dtype], name


def test_only_answers_carry_loss(batches: tuple[PackedBatch, list[PackedBatch]]) -> None:
    ids, tokenizer = tiny_tokenizer().ids, tiny_tokenizer()
    for batch in batches[1]:
        targets = batch.target_ids_t[batch.target_ids_t != -100]
        assert not set(targets.tolist()) & {ids.img, ids.img_break, ids.img_end, ids.end_inst}
        assert tokenizer.decode(targets.tolist(), keep_special=True).strip("a0123456789") == "</s>"


def test_a_model_must_see_images_as_the_tokenizer_cuts_them() -> None:
    tokenizer, config = tiny_tokenizer(), tiny_config(vocab_size=tiny_tokenizer().vocab_size)
    require_vision(tiny_multimodal(config), tokenizer)
    with pytest.raises(TrainingError, match="no vision tower"):
        require_vision(tiny_model(config), tokenizer)
    for other in ({"patch_size": 16}, {"spatial_merge_size": 1}, {"image_size": 1000}, {"image_token_index": 11}):
        with pytest.raises(TokenizerError):
            require_vision(tiny_multimodal(config, tiny_vision(**other)), tokenizer)


def test_images_for_a_model_that_cannot_see_are_refused(batches: tuple[PackedBatch, list[PackedBatch]]) -> None:
    blind = tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size))
    with pytest.raises(TrainingError, match=r"no vision tower.*rows\.jsonl:1"):
        hidden_states(blind, batches[0], CPU)
    text = next(batch for batch in batches[1] if batch.images is None)
    assert hidden_states(blind, text, CPU).shape == (text.num_tokens, 64)
