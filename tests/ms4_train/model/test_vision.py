"""Tower, merger and projector against transformers' modules with the same weights, module by module; parity of the whole is in
test_multimodal_parity. fp32 against fp32: measured errors are near 1e-6, the bar is 1e-5 of the largest value."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.multimodal import hf_images, hf_multimodal_twin, image_batch, random_pixels, tiny_multimodal, tiny_vision
from torch import nn

from ms4_kernels.attention import packed_attention
from ms4_train.model import ImageBatch
from ms4_train.model import vision as vision_module
from ms4_train.model.vision import PatchConv, rotation_table

CELLS = ((2, 3), (1, 1), (4, 2), (2, 3))


@pytest.fixture(scope="module")
def twins():
    model = tiny_multimodal()
    return model, hf_multimodal_twin(model).model


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_tower_equals_transformers(twins):
    model, oracle = twins
    pixels = random_pixels(CELLS, model.vision_config)
    ours_pd = model.vision_tower(image_batch(pixels, model.vision_config))
    theirs_pd = oracle.vision_tower(**hf_images(pixels)).last_hidden_state[0]
    assert theirs_pd.std() > 0.1
    assert relative(ours_pd, theirs_pd) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_projector_equals_transformers(merge):
    model = tiny_multimodal(vision=tiny_vision(spatial_merge_size=merge))
    oracle = hf_multimodal_twin(model).model
    images = image_batch(random_pixels(CELLS, model.vision_config), model.vision_config)
    hidden_pd = torch.randn(sum(images.lengths), 64)
    sizes = [(rows * 14, columns * 14) for rows, columns in images.grids]
    ours_nd, theirs_nd = model.multi_modal_projector(hidden_pd, images), oracle.multi_modal_projector(hidden_pd, sizes)
    assert ours_nd.shape == (sum(images.num_tokens(merge)), 64)
    assert relative(ours_nd, theirs_nd) < 1e-5
    if merge > 1:  # control: patch-major cells would be another function
        cells_nmd = model.multi_modal_projector.norm(hidden_pd)[images.cells_nm(merge)]
        merged_nd = model.multi_modal_projector.patch_merger.merging_layer(cells_nmd.flatten(1))
        other_nd = model.multi_modal_projector.linear_2(nn.functional.gelu(model.multi_modal_projector.linear_1(merged_nd)))
        assert relative(other_nd, theirs_nd) > 0.1


@torch.no_grad()
def test_rotation_of_the_largest_image_equals_transformers():
    """110 x 110 patches, the most that preprocessing makes (spec section 2.3), and a strip beyond it."""
    config = tiny_vision(head_dim=64, num_attention_heads=1)
    oracle = hf_multimodal_twin(tiny_multimodal(vision=config)).model.vision_tower.patch_positional_embedding
    images = ImageBatch(torch.zeros(110 * 110 + 400, 1), ((110, 110), (2, 200)))
    ours = rotation_table(images, config, torch.float32, torch.device("cpu"))
    for mine, theirs in zip(ours, oracle(torch.zeros(1), images.position_p2), strict=True):
        # An angle of up to 199 radians is rounded to 2^-17 before its cosine is taken.
        torch.testing.assert_close(mine[:, 0], theirs, rtol=0, atol=2e-5)
    angle_l = 109 * 10000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    corner_x = torch.cat((angle_l[0::2], angle_l[1::2])).repeat(2)  # row and column 109
    torch.testing.assert_close(ours[0][110 * 110 - 1, 0].double(), corner_x.cos(), rtol=0, atol=2e-5)


@torch.no_grad()
def test_images_do_not_see_each_other(monkeypatch):
    model = tiny_multimodal()
    pixels = random_pixels(CELLS, model.vision_config)
    run = lambda images: model.vision_tower(image_batch(images, model.vision_config))  # noqa: E731
    together_pd = run(pixels)
    alone_pd = torch.cat([run([image]) for image in pixels])
    # Blocks of matrix products split differently, so not to the bit.
    assert relative(together_pd, alone_pd) < 1e-5

    def leaking(query, key, value, images, **options):
        return packed_attention(query, key, value, type(images)((images.num_tokens,), images.device), **options)

    monkeypatch.setattr(vision_module, "packed_attention", leaking)
    assert relative(run(pixels), alone_pd) > 1e-2


@torch.no_grad()
def test_attention_is_not_causal(monkeypatch):
    model = tiny_multimodal()
    images = image_batch(random_pixels(((2, 2),), model.vision_config), model.vision_config)
    changed = ImageBatch(images.patches_pi.clone(), images.grids)
    changed.patches_pi[-1] += 1.0
    difference_p = (model.vision_tower(images) - model.vision_tower(changed)).abs().amax(dim=1)
    assert difference_p.min() > 1e-4  # the last patch reaches every other
    monkeypatch.setattr(vision_module, "packed_attention", lambda *args, causal, **options: packed_attention(*args, **options))
    causal_p = (model.vision_tower(images) - model.vision_tower(changed)).abs().amax(dim=1)
    assert causal_p[:-1].max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_attention_backends_agree(monkeypatch, backend):
    model = tiny_multimodal()
    images = image_batch(random_pixels(CELLS, model.vision_config), model.vision_config)
    expected = model.vision_tower(images)
    monkeypatch.setattr(vision_module, "packed_attention", partial(packed_attention, backend=backend))
    assert relative(model.vision_tower(images), expected) < 1e-5


def test_patch_conv_is_a_convolution():
    ours, theirs = PatchConv(3, 8, 14, 14, bias=False), nn.Conv2d(3, 8, 14, 14, bias=False)
    theirs.load_state_dict(ours.state_dict())
    patches = torch.randn(5, 3, 14, 14)
    torch.testing.assert_close(ours(patches), theirs(patches), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_peft_adapts_every_linear_and_the_patch_convolution():
    """PEFT takes them for its own kinds; an adapted tower equals one with W + s B A."""
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_multimodal()
    merged = tiny_multimodal().vision_tower
    images = image_batch(random_pixels(CELLS, model.vision_config), model.vision_config)
    plain_pd = merged(images)
    names = ["patch_conv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tower = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=names, init_lora_weights=False), model.vision_tower)
    adapted = [(name, module) for name, module in tower.named_modules() if hasattr(module, "get_delta_weight")]
    assert len(adapted) == 1 + 2 * 7
    for name, module in adapted:
        merged.get_submodule(name).weight += module.get_delta_weight("default")
    out_pd = tower.eval()(images)
    assert relative(out_pd, plain_pd) > 1e-2
    assert relative(out_pd, merged(images)) < 1e-5


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_multimodal().vision_tower.train()
    images = image_batch(random_pixels(CELLS, model.config), model.config)
    factors_pd = torch.randn(sum(images.lengths), 64)
    gradients, saved = [], []
    for enabled in (False, True):
        model.gradient_checkpointing = enabled
        model.zero_grad()
        count = 0

        def keep(x):
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out_pd = model(images)
            saved.append(count)
        (out_pd * factors_pd).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert saved[1] < saved[0] / 2


def test_patches_of_another_size_are_refused():
    model = tiny_multimodal()
    with pytest.raises(ValueError, match="a tower that takes 588 values"):
        model.vision_tower(ImageBatch(torch.zeros(4, 3 * 16 * 16), ((2, 2),)))
