"""Names are compared with those transformers gives its own modules, built on the meta device."""

import pytest
import torch
from support.models import hf_config, tiny_config

from ms4_train.weights.loading import expected_shapes
from ms4_train.weights.names import is_expert_stack, is_quantised_name, is_vision_name, nearest, text_name


@pytest.fixture(scope="module")
def multimodal_names() -> list[str]:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    vision = PixtralVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    config = Mistral3Config(text_config=hf_config(tiny_config()), vision_config=vision, tie_word_embeddings=False)
    with torch.device("meta"):
        return list(Mistral3ForConditionalGeneration(config).state_dict())


def test_every_tensor_of_the_multimodal_model_is_text_or_vision(multimodal_names):
    text = [name for name in multimodal_names if not is_vision_name(name)]
    assert {text_name(name) for name in text} == set(expected_shapes(tiny_config()))
    assert len(multimodal_names) - len(text) > 0


def test_names_on_disk_of_the_older_style_mean_the_same(multimodal_names):
    older = [
        name.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
        if not is_vision_name(name)
        else name.removeprefix("model.")
        for name in multimodal_names
    ]
    assert {text_name(name) for name in older if not is_vision_name(name)} == set(expected_shapes(tiny_config()))


def test_text_names_are_ours_already():
    assert all(text_name(name) == name and not is_vision_name(name) for name in expected_shapes(tiny_config()))


def test_expert_stacks_are_the_three_dimensional_parameters():
    for name, shape in expected_shapes(tiny_config()).items():
        assert is_expert_stack(name) == (len(shape) == 3)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.gate_up_proj_scale_inv",
        "model.layers.0.self_attn.o_proj.weight_scale_inv",
        "model.layers.0.self_attn.o_proj.activation_scale",
        "layers.0.experts.3.w1.weight_packed",
    ],
)
def test_tensors_of_quantised_checkpoints_are_recognised(name):
    assert is_quantised_name(name)
    assert not any(is_quantised_name(ours) for ours in expected_shapes(tiny_config()))


def test_nearest_names_put_the_likeliest_first():
    known = ["model.norm.weight", "model.layers.0.self_attn.q_a_proj.weight", "lm_head.weight"]
    assert nearest("model.layers.0.self_attn.qa_proj.weight", known)[0] == known[1]
    assert nearest("zzz", known) == []
