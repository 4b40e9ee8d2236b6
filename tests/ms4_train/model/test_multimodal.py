"""The whole model: where features go, what is refused, packing, the cache, checkpointing, passes without images. Parity with transformers
is in test_multimodal_parity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_model
from support.multimodal import IMG, cells_of, image_batch, random_pixels, sequence_ids, tiny_multimodal, tiny_vision

from ms4_train.model import DenseLatentCache, ImageBatch, SequenceLayout
from ms4_train.weights.layouts.pieces import ModelConfig, Part, pieces

ROWS = [[4, (2, 2), 9], [30], [(3, 2), 2, (1, 5), 8]]


@pytest.fixture
def model():
    return tiny_multimodal()


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def make(model, rows=ROWS):
    """(ids, image batch or None, lengths) of packed sequences."""
    ids = [sequence_ids(parts, model.config.vocab_size, seed) for seed, parts in enumerate(rows)]
    pixels = [image for seed, parts in enumerate(rows) for image in random_pixels(cells_of(parts), model.vision_config, seed)]
    return torch.cat(ids), image_batch(pixels, model.vision_config) if pixels else None, tuple(len(ids_t) for ids_t in ids)


def loss_and_gradients(model, ids_t, images, lengths):
    """Summed next-token loss inside documents, and the gradient of every parameter (zeros where there is none)."""
    model.zero_grad()
    logits_tv = model.logits(model(ids_t, SequenceLayout(lengths), images=images))
    pairs = zip(logits_tv.split(lengths), ids_t.split(lengths), strict=True)
    loss = sum(F.cross_entropy(piece_tv[:-1], piece_t[1:], reduction="sum") for piece_tv, piece_t in pairs)
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return loss.detach(), gradients


def test_names_and_shapes_are_the_checkpoints_pieces(model):
    """Of tower and projector; the text network's are tested against transformers'."""
    named = {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith(("vision_tower.", "multi_modal_projector."))}
    wanted = {piece.name: piece.shape for piece in pieces(ModelConfig(model.config, model.vision_config)) if piece.part is Part.VISION}
    assert named == wanted
    assert sum(p.numel() for p in model.parameters()) == ModelConfig(model.config, model.vision_config).num_parameters()


@torch.no_grad()
def test_features_take_the_places_of_image_tokens(model):
    ids_t, images, _ = make(model)
    features_nd = model.image_features(images)
    embedded_td, text_td = model.embed(ids_t, features_nd), model.model.embed_tokens(ids_t)
    assert torch.equal(embedded_td[ids_t == IMG], features_nd)
    assert torch.equal(embedded_td[ids_t != IMG], text_td[ids_t != IMG])  # breaks and ends of images are ordinary tokens


def test_packed_sequences_train_like_sequences_alone(model):
    packed, packed_gradients = loss_and_gradients(model, *make(model))
    alone = 0.0
    alone_gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for seed, parts in enumerate(ROWS):
        ids_t = sequence_ids(parts, model.config.vocab_size, seed)
        pixels = random_pixels(cells_of(parts), model.vision_config, seed)
        images = image_batch(pixels, model.vision_config) if pixels else None
        loss, gradients = loss_and_gradients(model, ids_t, images, (len(ids_t),))
        alone += loss
        for name, gradient in gradients.items():
            alone_gradients[name] += gradient
    assert relative(packed, alone) < 1e-5
    assert max(relative(packed_gradients[name], alone_gradients[name]) for name in alone_gradients) < 1e-5

    # Control: images that see each other, as under one document, give other gradients.
    ids_t, images, lengths = make(model)
    assert images is not None
    merged = ImageBatch(images.patches_pi, ((sum(images.lengths) // 2, 2),))
    _, merged_gradients = loss_and_gradients(model, ids_t, merged, lengths)
    name = "vision_tower.patch_conv.weight"
    assert relative(merged_gradients[name], alone_gradients[name]) > 1e-2


@torch.no_grad()
def test_text_alone_is_the_text_networks(model):
    text = tiny_model()
    text.load_state_dict({name: value for name, value in model.state_dict().items() if name.startswith(("model.", "lm_head."))})
    ids_t, _, lengths = make(model, [[9], [30]])
    assert torch.equal(model(ids_t, SequenceLayout(lengths)), text(ids_t, SequenceLayout(lengths)))
    with pytest.raises(ValueError, match="no vision tower"):
        text(ids_t, SequenceLayout(lengths), images=ImageBatch(torch.zeros(4, 588), ((2, 2),)))


@torch.no_grad()
def test_prefill_in_two_parts_and_decoding_equal_one_pass(model):
    ids_t, images, (length,) = make(model, [[5, (2, 2), 3, (1, 3), 6]])
    assert images is not None
    whole_td = model(ids_t, SequenceLayout((length,)), images=images)
    cache = DenseLatentCache(model.config, slots=1, max_len=length)
    first, second = (
        ImageBatch(images.patches_pi[cut], (grid,)) for cut, grid in zip((slice(16), slice(16, None)), images.grids, strict=True)
    )
    cut = 5 + 6 + 1  # inside the text between the images
    parts = [model(ids_t[:cut], SequenceLayout((cut,), (0,), (0,)), cache, first)]
    parts.append(model(ids_t[cut:-2], SequenceLayout((length - 2 - cut,), (cut,), (0,)), cache, second))
    parts += [model(ids_t[at : at + 1], SequenceLayout((1,), (at,), (0,)), cache) for at in (length - 2, length - 1)]
    assert relative(torch.cat(parts), whole_td) < 1e-4


@torch.no_grad()
def test_an_image_token_that_the_model_drew_itself_is_an_ordinary_one(model):
    cache = DenseLatentCache(model.config, slots=1, max_len=4)
    drawn_td = model(torch.tensor([40, IMG]), SequenceLayout((2,), (0,), (0,)), cache)
    assert bool(drawn_td.isfinite().all())


@pytest.mark.parametrize(
    ("rows", "cells", "says"),
    [
        ([[3, (2, 2)]], [], "4 image tokens, but features of 0"),
        ([[3]], [(1, 1)], "0 image tokens, but features of 1"),
        ([[3, (2, 2)]], [(2, 3)], "4 image tokens, but features of 6"),
    ],
)
def test_images_that_do_not_fit_their_tokens_are_refused(model, rows, cells, says):
    ids_t, _, lengths = make(model, rows)
    images = image_batch(random_pixels(cells, model.vision_config), model.vision_config) if cells else None
    with pytest.raises(ValueError, match=says):
        model(ids_t, SequenceLayout(lengths), images=images)


def test_gradient_checkpointing_changes_no_gradient(model):
    model.train()
    _, plain = loss_and_gradients(model, *make(model))
    model.gradient_checkpointing = True
    assert model.vision_tower.gradient_checkpointing
    assert model.gradient_checkpointing
    calls = []
    hook = model.vision_tower.transformer.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    _, recomputed = loss_and_gradients(model, *make(model))
    hook.remove()
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_frozen_vision_has_no_backward_pass(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_tower.", "multi_modal_projector.")))
    ids_t, images, lengths = make(model)
    assert images is not None
    assert not model.image_features(images).requires_grad
    _, gradients = loss_and_gradients(model, ids_t, images, lengths)
    assert gradients["model.layers.0.self_attn.q_a_proj.weight"].abs().max() > 0


def leaves_run(model, run):
    """The names of the modules without children in the order in which a pass calls them, and what it returned."""
    order = []
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(lambda *_, name=name: order.append(name)) for name, module in leaves]
    result = run()
    for hook in hooks:
        hook.remove()
    return order, result


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_without_images(model, checkpointing):
    """Vision parameters get no gradient, or zeros where every pass must run their modules; nothing else changes, to the bit."""
    model.train()
    model.gradient_checkpointing = checkpointing
    vision = [parameter for name, parameter in model.named_parameters() if name.startswith(("vision_tower.", "multi_modal_projector."))]
    loss, gradients = loss_and_gradients(model, *make(model, [[9], [30]]))
    assert all(parameter.grad is None for parameter in vision)

    with_images, _ = leaves_run(model, lambda: loss_and_gradients(model, *make(model)))
    model.always_run_vision = True
    without, (touched_loss, touched) = leaves_run(model, lambda: loss_and_gradients(model, *make(model, [[9], [30]])))
    assert without == with_images  # in one order, forward and, where layers are recomputed, backward
    assert torch.equal(touched_loss, loss)
    assert all(torch.equal(touched[name], gradients[name]) for name in gradients)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in vision)


def test_other_image_tokens_and_cells():
    model = tiny_multimodal(vision=tiny_vision(image_token_index=17, spatial_merge_size=1))
    ids_t, images, lengths = make(model, [[2, (1, 2), 3]])
    ids_t = torch.where(ids_t == IMG, 17, ids_t)
    assert model(ids_t, SequenceLayout(lengths), images=images).shape == (len(ids_t), 64)
