"""A text checkpoint gets a tower: its text stays bit for bit, what comes out is a multimodal folder that transformers loads."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import our_logits, relative_error, saved_tiny
from support.layouts import native_folder, native_fp8_folder
from support.layouts_pieces import is_vision_piece
from support.seeing import our_image_logits, their_image_logits

from ms4_train.errors import ConfigError, StorageError, WeightsError
from ms4_train.weights import base_fingerprint, load_model, open_checkpoint
from ms4_train.weights.add_vision import add_vision
from ms4_train.weights.init import read_whole_model_file
from ms4_train.weights.reading.fingerprint import is_same_base

MODELS = Path(__file__).resolve().parents[3] / "configs" / "models"
TINY_VISION = MODELS / "tiny-vision.yaml"


@pytest.mark.parametrize("vocab_size", [512, 300])
def test_the_text_stays_and_the_tower_is_fresh(tmp_path, vocab_size):
    from support.models import tiny_config

    before = saved_tiny(tmp_path / "base", tiny_config(vocab_size=vocab_size))  # another width than the model file's text
    (tmp_path / "base" / "tekken.json").write_text("{}")
    assert add_vision(tmp_path / "base", tmp_path / "out", vision_yaml=TINY_VISION, seed=1) == tmp_path / "out"
    model = load_model(tmp_path / "out", dtype=torch.float32)
    assert model.vision_config == read_whole_model_file(TINY_VISION).vision
    assert torch.equal(our_logits(model, torch.arange(20, 60)), our_logits(before, torch.arange(20, 60)))
    assert relative_error(our_image_logits(model), their_image_logits(tmp_path / "out")) < 1e-5
    assert is_same_base(base_fingerprint(tmp_path / "base"), base_fingerprint(tmp_path / "out"), vision=False)  # its adapters fit
    assert (tmp_path / "out" / "tekken.json").read_text() == "{}"
    add_vision(tmp_path / "base", tmp_path / "other", vision_yaml=TINY_VISION, seed=2)
    other, state = load_model(tmp_path / "other", dtype=torch.float32).state_dict(), model.state_dict()
    same = {name for name, tensor in state.items() if torch.equal(tensor, other[name])}
    assert {name for name in state if name not in same} == {n for n, t in state.items() if is_vision_piece(n) and t.ndim > 1}


@pytest.mark.parametrize("make", [native_folder, native_fp8_folder])
def test_the_base_may_be_in_any_layout(tmp_path, make):
    make(tmp_path / "base", vision=False)
    add_vision(tmp_path / "base", tmp_path / "out", vision_yaml=TINY_VISION, seed=1)
    assert open_checkpoint(tmp_path / "out").dtype == torch.bfloat16
    before, after = (load_model(tmp_path / name, dtype=torch.bfloat16).state_dict() for name in ("base", "out"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (tmp_path / "out" / "fp8_scales.json").exists() == (make is native_fp8_folder)


def test_what_cannot_be_done_is_refused(tmp_path):
    native_folder(tmp_path / "seeing")
    saved_tiny(tmp_path / "base")
    with pytest.raises(WeightsError, match="has a vision tower already"):
        add_vision(tmp_path / "seeing", tmp_path / "out", vision_yaml=TINY_VISION, seed=1)
    with pytest.raises(ConfigError, match=r"tiny\.yaml.*vision: this section is missing.*Fix:"):
        add_vision(tmp_path / "base", tmp_path / "out", vision_yaml=MODELS / "tiny.yaml", seed=1)
    with pytest.raises(WeightsError, match="nowhere"):
        add_vision(tmp_path / "nowhere", tmp_path / "out", vision_yaml=TINY_VISION, seed=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(StorageError, match="holds"):
        add_vision(tmp_path / "base", tmp_path / "seeing", vision_yaml=TINY_VISION, seed=1)
