"""Names are compared with those transformers gives its own modules, built on the meta device."""

import time

import pytest
import torch
from support.models import hf_config, tiny_config

from ms4_train.weights.layouts.names import and_more, nearest, text_name
from ms4_train.weights.layouts.tables import HfNames
from ms4_train.weights.reading.loading import expected_shapes

VISION = ("model.vision_tower.", "model.multi_modal_projector.")


@pytest.fixture(scope="module")
def text_names() -> list[str]:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    vision = PixtralVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    config = Mistral3Config(text_config=hf_config(tiny_config()), vision_config=vision, tie_word_embeddings=False)
    with torch.device("meta"):
        names = list(Mistral3ForConditionalGeneration(config).state_dict())
    return [name for name in names if not name.startswith(VISION)]


def test_names_of_the_multimodal_class_become_ours(text_names):
    assert {text_name(name) for name in text_names} == set(expected_shapes(tiny_config()))


def test_names_on_disk_of_the_older_style_mean_the_same(text_names):
    older = [
        name.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.") for name in text_names
    ]
    head = {"lm_head.weight": "language_model.lm_head.weight"}
    older = [head.get(name, name.replace("model.language_model.", "language_model.model.")) for name in text_names]
    assert {text_name(name) for name in older} == set(expected_shapes(tiny_config()))


@pytest.mark.parametrize("style", HfNames)
def test_what_a_style_makes_of_our_names_comes_back(style):
    for name in expected_shapes(tiny_config()):
        assert text_name(style.stored(name)) == name


def test_text_names_are_ours_already():
    assert all(text_name(name) == name for name in expected_shapes(tiny_config()))


def test_nearest_names_put_the_likeliest_first():
    known = ["model.norm.weight", "model.layers.0.self_attn.q_a_proj.weight", "lm_head.weight"]
    assert nearest("model.layers.0.self_attn.qa_proj.weight", known)[0] == known[1]
    assert nearest("zzz", known) == []


def test_nearest_of_tens_of_thousands_is_found_at_once():
    known = [
        f"layers.{layer}.experts.{expert}.{name}.weight" for layer in range(36) for expert in range(128) for name in ("w1", "w2", "w3")
    ]
    start = time.process_time()
    assert nearest("layers.7.experts.19.w_1.weight", known)[0] == "layers.7.experts.19.w1.weight"
    assert time.process_time() - start < 1  # measured 0.05 s; without the choice of candidates 0.6 s


def test_and_more():
    assert [and_more(range(count)) for count in (0, 1, 2, 5)] == ["", "", " (and 1 more)", " (and 4 more)"]
