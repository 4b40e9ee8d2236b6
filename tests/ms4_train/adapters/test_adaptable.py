"""What a pair can stand on: sizes are those of the weights, with and without adapters in the way."""

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import saved_tiny
from support.models import tiny_config
from support.multimodal import tiny_multimodal, tiny_vision

from ms4_train.adapters.adaptable import adaptable_parts
from ms4_train.weights import load_model
from ms4_train.weights.reading.loading import empty_model


def shape(part):
    shape = (part.inputs, part.outputs) if part.kind == "embedding" else (part.outputs, part.inputs)
    return (part.experts, *shape) if part.kind == "stack" else shape


def test_sizes_are_those_of_the_weights():
    model = tiny_multimodal()
    parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
    parts = adaptable_parts(model)
    for name, part in parts.items():
        assert shape(part) == parameters[name if part.kind == "stack" else f"{name}.weight"]
    matrices = {name for name, size in parameters.items() if len(size) in (2, 3)}
    assert {name if part.kind == "stack" else f"{name}.weight" for name, part in parts.items()} == matrices
    assert {part.kind for part in parts.values()} == {"linear", "embedding", "router", "stack"}


@pytest.mark.parametrize("is_vision", [False, True])
def test_adapters_on_the_model_do_not_count(is_vision):
    plain = empty_model(tiny_config(), vision=tiny_vision() if is_vision else None)
    settings = section(preset="attention+experts", modules_to_save=["lm_head"])
    assert adaptable_parts(adapted(settings, vision=is_vision)) == adaptable_parts(plain)


def test_part_of_the_experts_gives_the_whole(tmp_path):
    saved_tiny(tmp_path / "base")
    assert adaptable_parts(load_model(tmp_path / "base", dtype=torch.float32, expert_range=(2, 4))) == adaptable_parts(
        empty_model(tiny_config())
    )


def test_shapes_of_pairs():
    parts = adaptable_parts(empty_model(tiny_config()))
    assert parts["model.layers.0.mlp.experts.down_proj"].shape_a(3) == (8, 3, 32)
    assert parts["model.layers.0.mlp.experts.down_proj"].shape_b(3) == (8, 64, 3)
    assert parts["model.embed_tokens"].shape_a(3) == (3, 512)
    assert parts["model.embed_tokens"].shape_b(3) == (64, 3)
