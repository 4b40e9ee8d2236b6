"""Model files with a vision section become multimodal checkpoints that transformers loads, with equal logits of images."""

import dataclasses
from pathlib import Path

import pytest
import torch
from support.checkpoints import relative_error
from support.layouts_pieces import is_vision_piece
from support.seeing import our_image_logits, their_image_logits

from ms4_train.errors import ConfigError
from ms4_train.model import VisionConfig
from ms4_train.weights import init_checkpoint, load_model, read_model_file
from ms4_train.weights.init import read_whole_model_file

MODELS = Path(__file__).resolve().parents[3] / "configs" / "models"
TINY, TINY_VISION, RELEASE = (MODELS / f"{name}.yaml" for name in ("tiny", "tiny-vision", "mistral-small-4"))


def test_the_release_file_is_the_whole_model():
    config = read_whole_model_file(RELEASE)
    assert config.vision == VisionConfig()
    assert config.num_parameters() == 119_401_298_944


def test_the_tiny_file_is_the_tiny_text_with_a_tower():
    config = read_whole_model_file(TINY_VISION)
    assert config.text == read_model_file(TINY) == read_model_file(TINY_VISION)
    assert config.vision == dataclasses.replace(
        VisionConfig(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16
    )
    assert f"{config.num_parameters() - config.text.num_parameters():,} parameters more" in TINY_VISION.read_text()
    assert read_whole_model_file(TINY).vision is None


def test_a_fresh_multimodal_checkpoint_equals_transformers(tmp_path):
    """Measured 1e-6: fp32 sums in another order."""
    init_checkpoint(TINY_VISION, tmp_path / "m", seed=3, tokenizer_file=None, dtype=torch.float32)
    model = load_model(tmp_path / "m", dtype=torch.float32)
    assert relative_error(our_image_logits(model), their_image_logits(tmp_path / "m")) < 1e-5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(model.config.initializer_range, rel=0.1), name


def test_the_text_is_the_same_with_and_without_vision(tmp_path):
    for name, file in (("text", TINY), ("whole", TINY_VISION)):
        init_checkpoint(file, tmp_path / name, seed=3, tokenizer_file=None)
    text, whole = (load_model(tmp_path / name, dtype=torch.bfloat16).state_dict() for name in ("text", "whole"))
    assert {name for name in whole if not is_vision_piece(name)} == text.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in text.items())


@pytest.mark.parametrize(
    ("line", "replacement", "key"),
    [
        ("  hidden_size: 64", "  hidden_size: 0", "vision.hidden_size"),
        ("  intermediate_size: 128", "  intermediat_size: 128", "vision.intermediat_size"),
        ("  num_attention_heads: 4   #", "  num_attention_heads: 5   #", "vision.head_dim"),
        ("  num_attention_heads: 4   #", "  num_attention_heads: 32   #", "vision.head_dim"),
        ("  num_hidden_layers: 2", "  num_hidden_layers: 1000000000", "vision.num_hidden_layers"),
        ("  image_token_index: 10 ", "  image_token_index: 512 ", "vision.image_token_index"),
        ("vision:", "vision: 3\nunused:", "vision"),
    ],
)
def test_faults_of_the_section_name_key_and_line(tmp_path, line, replacement, key):
    text = TINY_VISION.read_text()
    assert text.count(f"\n{line}") == 1
    file = tmp_path / "model.yaml"
    file.write_text(text.replace(f"\n{line}", f"\n{replacement}"))
    with pytest.raises(ConfigError) as caught:
        read_whole_model_file(file)
    for words in (key, "Fix:", f"{file}:"):
        assert words in str(caught.value)
