"""The whole model against transformers' Mistral3ForConditionalGeneration with the same weights: logits, and gradients of all parameters.

Tolerances are those of the acceptance: logits 1e-4, each gradient 1e-3, relative to the largest value; measured errors are near 1e-6.
transformers gives the projector norm the text network's eps, 1e-6; so do these models (the default here is vLLM's 1e-5).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_config
from support.multimodal import (
    cells_of,
    hf_images,
    hf_multimodal_config,
    hf_multimodal_twin,
    hf_name,
    image_batch,
    random_pixels,
    sequence_ids,
    tiny_multimodal,
    tiny_vision,
)

from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, RopeParameters, SequenceLayout, TextConfig, VisionConfig
from ms4_train.model import vision as vision_module

# Numbers are texts, pairs are images of that many rows and columns of cells.
ROWS = {
    "several sizes": [[3, (2, 3), 7, (1, 1), (4, 2), 5]],
    "no image": [[40]],
    "image first and last": [[(1, 4), 6, (3, 1)]],
    "packed": [[4, (2, 2), 9], [30], [(3, 2), 2, (1, 5), 8]],
}
CONFIGS = {
    "small": (tiny_config(softmax_scale="mscale"), tiny_vision()),
    "plain scale, past its first positions": (
        tiny_config(rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16)),
        tiny_vision(),
    ),
    "odd widths": (
        tiny_config(softmax_scale="mscale", hidden_size=52, vocab_size=301, rms_norm_eps=1e-5),
        tiny_vision(
            hidden_size=24, intermediate_size=70, num_hidden_layers=3, num_attention_heads=3, head_dim=8, patch_size=6, rope_theta=500.0
        ),
    ),
    "cells of three by three": (tiny_config(), tiny_vision(spatial_merge_size=3, num_channels=1, image_token_index=17, patch_size=4)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def twins(request):
    model = tiny_multimodal(*CONFIGS[request.param])
    return model, hf_multimodal_twin(model)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def make_rows(model, rows, dtype=torch.float32):
    """Ids and pixels of each sequence; the image token is the model's."""
    token = model.vision_config.image_token_index
    ids = [sequence_ids(parts, model.config.vocab_size, seed) for seed, parts in enumerate(rows)]
    ids = [torch.where(ids_t == 10, token, ids_t) for ids_t in ids]
    pixels = [random_pixels(cells_of(parts), model.vision_config, seed, dtype) for seed, parts in enumerate(rows)]
    return ids, pixels


def ours(model, ids, pixels):
    flat = [image for images in pixels for image in images]
    images = image_batch(flat, model.vision_config) if flat else None
    return model.logits(model(torch.cat(ids), SequenceLayout.from_lengths([len(ids_t) for ids_t in ids]), images=images))


def theirs(oracle, ids, pixels):
    """transformers, one sequence at a time."""
    pairs = zip(ids, pixels, strict=True)
    return torch.cat([oracle(ids_t[None], **(hf_images(images) if images else {})).logits[0] for ids_t, images in pairs])


def loss(logits_tv, ids):
    pieces = zip(logits_tv.split([len(ids_t) for ids_t in ids]), ids, strict=True)
    return sum(F.cross_entropy(piece_tv[:-1].float(), ids_t[1:], reduction="sum") for piece_tv, ids_t in pieces)


@pytest.mark.parametrize("row", ROWS)
def test_logits_and_gradients(twins, row):
    model, oracle = twins
    ids, pixels = make_rows(model, ROWS[row])
    logits_tv, expected_tv = ours(model, ids, pixels), theirs(oracle, ids, pixels)
    assert expected_tv.std() > 0.5
    assert relative(logits_tv, expected_tv) < 1e-4
    for each, logits in ((model, logits_tv), (oracle, expected_tv)):
        each.zero_grad()
        loss(logits, ids).backward()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    has_images = any(pixels)
    for name, parameter in model.named_parameters():
        expected = gradients.pop(hf_name(name))
        if not has_images and name.startswith(("vision_tower", "multi_modal_projector")):
            assert parameter.grad is None, name
            assert expected is None, name
        else:
            assert expected.abs().max() > 0, name
            assert relative(parameter.grad, expected) < 1e-3, name
    assert gradients == {}


@torch.no_grad()
def test_controls():
    """What a wrong wiring would do to the logits: each is far beyond the tolerance."""
    model = tiny_multimodal(*CONFIGS["small"])
    oracle = hf_multimodal_twin(model)
    ids, pixels = make_rows(model, [[4, (2, 2), 9, (2, 2), 3]])
    expected_tv = theirs(oracle, ids, pixels)
    assert relative(ours(model, ids, pixels), expected_tv) < 1e-4
    assert relative(ours(model, ids, [pixels[0][::-1]]), expected_tv) > 1e-2  # two images change places
    turned = [[image.transpose(1, 2) for image in pixels[0]]]
    assert relative(ours(model, ids, turned), expected_tv) > 1e-2  # rows and columns change places

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_module.PatchMerger, "forward", patch_major)
        assert relative(ours(model, ids, pixels), expected_tv) > 1e-2
    with pytest.MonkeyPatch.context() as patch:
        whole = vision_module.PackedDocuments
        patch.setattr(vision_module, "PackedDocuments", lambda lengths, device: whole((sum(lengths),), device))
        assert relative(ours(model, ids, pixels), expected_tv) > 1e-2  # images see each other


def patch_major(merger, hidden_pd, images):
    return merger.merging_layer(hidden_pd[images.cells_nm(merger.merge)].flatten(1))


@torch.no_grad()
def test_the_projectors_eps():
    """1e-5 and 1e-6 differ by 5e-6 of a norm's value where features are of size one, so parity would not tell them apart; where they
    are small it does. Transformers' is 1e-6, the text network's."""
    model, other = tiny_multimodal(), tiny_multimodal(projector_norm_eps=1e-5)
    oracle = hf_multimodal_twin(model).model.multi_modal_projector
    images = image_batch(random_pixels([(2, 2)], model.vision_config), model.vision_config)
    hidden_pd = 2e-3 * torch.randn(16, 64)
    expected = oracle(hidden_pd, [(56, 56)])
    assert relative(model.multi_modal_projector(hidden_pd, images), expected) < 1e-5
    assert relative(other.multi_modal_projector(hidden_pd, images), expected) > 1e-2
    assert Mistral3ForConditionalGeneration(tiny_config(), tiny_vision()).multi_modal_projector.norm.eps == 1e-5


@torch.no_grad()
def test_bf16_strays_at_most_twice_as_far_as_transformers():
    config, vision = CONFIGS["small"]
    wide = tiny_multimodal(config, vision).double()
    model = tiny_multimodal(config, vision, dtype=torch.bfloat16)
    wide.load_state_dict(model.state_dict())
    oracle = hf_multimodal_twin(model)
    ids, pixels = make_rows(model, ROWS["packed"])
    images = [image for row in pixels for image in row]
    batch = image_batch(images, vision)
    exact_nd = wide.image_features(ImageBatch(batch.patches_pi.double(), batch.grids))
    features_nd = model.image_features(batch)
    assert features_nd.dtype == torch.bfloat16
    hf_nd = torch.cat(oracle.get_image_features(**hf_images(images)).pooler_output)
    assert (features_nd.double() - exact_nd).norm() <= 2 * (hf_nd.double() - exact_nd).norm()
    exact_tv = ours(wide, ids, [[image.double() for image in row] for row in pixels])
    error, bound = ours(model, ids, pixels).double() - exact_tv, theirs(oracle, ids, pixels).double() - exact_tv
    assert error.norm() <= 2 * bound.norm()


def test_release_has_transformers_names_shapes_and_number():
    from transformers import Mistral3ForConditionalGeneration as Oracle

    with torch.device("meta"):
        ours = Mistral3ForConditionalGeneration(TextConfig(), VisionConfig()).state_dict()
        theirs = Oracle(hf_multimodal_config(TextConfig(), VisionConfig())).state_dict()
    assert {hf_name(name): tuple(x.shape) for name, x in ours.items()} == {name: tuple(x.shape) for name, x in theirs.items()}
    assert len(ours) == 765
    assert sum(x.numel() for x in ours.values()) == 119_401_298_944
