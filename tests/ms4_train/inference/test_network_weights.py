"""What the compiled step is handed is the model's own memory, all of it, with the adapters of each kind of row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from support.adapter_rows import ENDS, SAVED_ENDS, SMALL, WIDE, make_folder, with_adapter
from support.models import tiny_config, tiny_model
from support.multimodal import tiny_multimodal
from support.quantised_models import quantised_tiny

from ms4_kernels.quantised import QuantisedWeight
from ms4_train.adapters import load_adapter, merge, set_active_adapters
from ms4_train.inference.network_weights import network_weights
from ms4_train.model import RopeParameters


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor in nested dataclasses, tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, QuantisedWeight):
        yield from value.tensors
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def places(tensors) -> set[tuple[int, int]]:
    return {(tensor.data_ptr(), tensor.nbytes) for tensor in tensors}


def own_places(model) -> set[tuple[int, int]]:
    """Memory of everything that is computed between the embedding and the logits."""
    values = {**dict(model.named_parameters()), **{name: value for name, value in model.named_buffers() if value.numel()}}
    outside = ("model.embed_tokens.", "vision_tower.", "multi_modal_projector.")
    return places(value for name, value in values.items() if not name.startswith(outside))


def handed(weights) -> set[tuple[int, int]]:
    frequencies = places([weights.frequencies_f])
    return places(tensors_in(weights)) - frequencies


@pytest.mark.parametrize(
    "make",
    [
        tiny_model,
        tiny_multimodal,
        lambda: tiny_model(dtype=torch.bfloat16),
        lambda: quantised_tiny("fp8"),
        lambda: quantised_tiny("nvfp4"),
        lambda: with_adapter(WIDE, 1),
        lambda: with_adapter({"target_modules": ["lm_head", "kv_b_proj"]}, 1),
    ],
    ids=["fp32", "vision", "bf16", "fp8", "nvfp4", "adapter", "head"],
)
def test_all_weights_are_handed_over_and_none_is_a_copy(make):
    model = make()
    assert handed(network_weights(model)) == own_places(model)


def test_a_copy_would_be_noticed():
    model = tiny_model()
    weights = network_weights(model)
    weights.layers[1].q_b.weight = weights.layers[1].q_b.weight.clone()
    assert handed(weights) != own_places(model)


def test_adapters_by_number(tmp_path):
    """0: the model as it stands, further ones by name; in their own memory, quantised or not the base."""
    model = with_adapter(WIDE, 1, name="live")
    for name, case in (("small", SMALL), ("other", WIDE)):
        load_adapter(model, make_folder(tmp_path / name, case, 5), base_fingerprint=None, name=name)
    set_active_adapters(model, ["live", "other"])
    weights = network_weights(model, ["small", "other"])
    assert handed(weights) == own_places(model)
    layer, attention = weights.layers[0], model.model.layers[0].self_attn
    assert {number: len(pairs) for number, pairs in layer.q_b.adapters.items()} == {0: 2, 2: 1}
    assert {number: len(pairs) for number, pairs in layer.kv_b.adapters.items()} == {0: 2, 1: 1, 2: 1}
    assert {number: len(loras) for number, loras in layer.experts.adapters.items()} == {0: 2, 1: 1, 2: 1}
    pair = layer.kv_b.adapters[1][0]
    assert (pair.scale, pair.a_ri.shape[0]) == (5.0 / 2, 2)
    assert pair.a_ri.data_ptr() == attention.kv_b_proj.factors("small")[0].data_ptr()
    assert layer.experts.adapters[1][0].gate_up_a_erd is None
    set_active_adapters(model, [])
    assert 0 not in network_weights(model, ["small", "other"]).layers[0].experts.adapters


def test_merged_adapters_are_in_the_weights_alone():
    model = with_adapter(WIDE, 1)
    merge(model, keep=True)
    weights = network_weights(model)
    layer = weights.layers[1]
    assert not layer.o.adapters
    assert not layer.experts.adapters
    assert layer.o.weight.data_ptr() == model.model.layers[1].self_attn.o_proj.base_layer.weight.data_ptr()


def test_copies_that_run_are_handed_over():
    model = with_adapter(SAVED_ENDS, 3)
    weights = network_weights(model)
    assert weights.head.weight.data_ptr() == model.lm_head.modules_to_save["default"].weight.data_ptr()
    shared = model.model.layers[0].mlp.shared_experts.modules_to_save["default"]
    assert weights.layers[0].shared_up.weight.data_ptr() == shared.up_proj.weight.data_ptr()
    assert weights.layers[0].router.data_ptr() == model.model.layers[0].mlp.gate.modules_to_save["default"].weight.data_ptr()
    set_active_adapters(model, [])
    assert network_weights(model).head.weight.data_ptr() == model.lm_head.original_module.weight.data_ptr()


def test_numbers_are_the_configurations():
    rope = RopeParameters(factor=4.0, original_max_position_embeddings=32, attention_factor=1.5, llama_4_scaling_beta=0.2)
    config = tiny_config(rope_parameters=rope, routed_scaling_factor=2.5, norm_topk_prob=False, rms_norm_eps=1e-4)
    model = tiny_model(config)
    weights = network_weights(model)
    assert (weights.num_heads, weights.nope, weights.rope, weights.value, weights.latent_rank) == (4, 8, 8, 16, 16)
    assert (weights.top_k, weights.renormalise, weights.routed_scale) == (2, False, 2.5)
    assert (weights.norm_eps, weights.latent_norm_eps, weights.attention_scale) == (1e-4, 1e-6, config.attention_scale)
    assert (weights.llama4_beta, weights.llama4_original) == (0.2, 32)
    cos_tp, _ = model.model.rotary(torch.tensor([7]))
    torch.testing.assert_close((7 * weights.frequencies_f).cos() * weights.cos_sin_factor, cos_tp[0, ::2])


def test_ends_that_modules_compute_are_not_needed():
    weights = network_weights(with_adapter(ENDS, 1))
    assert weights.layers[0].kv_b.adapters
    assert weights.head.adapters
