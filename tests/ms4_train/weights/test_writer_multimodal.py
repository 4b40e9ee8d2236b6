"""Whole models written: trained vision in the run's type, untouched vision in the base's, and vision without any base.

Oracle: transformers' own loading and logits of images. Tolerance 1e-5: fp32 sums in another order; measured 2e-6.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import relative_error
from support.layouts import hf_folder, native_folder
from support.layouts_pieces import is_vision_piece
from support.models import tiny_config
from support.multimodal import tiny_multimodal, tiny_vision
from support.seeing import our_image_logits, their_image_logits
from torch import Tensor

from ms4_train.errors import WeightsError
from ms4_train.model import Mistral3ForConditionalGeneration
from ms4_train.weights import load_model, open_checkpoint, save_model

CLOSE = 1e-5
TRAINED = ("vision_tower.transformer.layers.1.", "multi_modal_projector.linear_1.")


def vision_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if is_vision_piece(name)}


@pytest.mark.parametrize("max_shard_bytes", [5 << 30, 100_000])
def test_a_model_without_a_base_is_written_whole(tmp_path: Path, max_shard_bytes: int) -> None:
    model = tiny_multimodal()
    save_model(model.state_dict(), tmp_path, config=model.config, vision=model.vision_config, max_shard_bytes=max_shard_bytes)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["architectures"] == ["Mistral3ForConditionalGeneration"]
    assert relative_error(our_image_logits(model), their_image_logits(tmp_path)) < CLOSE
    again = load_model(tmp_path, dtype=torch.float32)
    assert isinstance(again, Mistral3ForConditionalGeneration)
    assert again.vision_config == model.vision_config
    assert torch.equal(our_image_logits(again), our_image_logits(model))


@pytest.mark.parametrize("make", [hf_folder, native_folder])
@pytest.mark.parametrize("given", ["all", "trained"])
def test_trained_vision_is_written_and_the_rest_is_the_bases(tmp_path: Path, make, given: str) -> None:
    """As an fp32 run leaves it: what changed is in fp32, what did not in the base's bf16, whether or not the run hands it over."""
    make(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.startswith(TRAINED):
            parameter.data.mul_(1.01)
    pairs = ((name, p) for name, p in model.named_parameters() if given == "all" or not is_vision_piece(name) or name.startswith(TRAINED))
    save_model(pairs, tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    stored = vision_part(load_file(tmp_path / "out" / "model.safetensors"))
    state = model.state_dict()
    assert stored.keys() == vision_part(state).keys()
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == {n for n in stored if n.startswith(TRAINED)}
    for name, tensor in stored.items():
        assert torch.equal(tensor.float(), state[name]), name
    expected = our_image_logits(model)
    assert relative_error(expected, our_image_logits(load_model(tmp_path / "base", dtype=torch.float32))) > 1e-3  # control: it was trained
    assert relative_error(expected, their_image_logits(tmp_path / "out")) < CLOSE


def test_an_fp32_tower_is_not_rounded_by_a_bf16_run(tmp_path: Path) -> None:
    """What a run in bf16 read and did not change goes along in the base's wider type."""
    hf_folder(tmp_path / "base", dtype=torch.float32)
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    before, after = (vision_part(load_file(tmp_path / name / "model.safetensors")) for name in ("base", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in before.values())


def test_vision_that_nobody_gives_is_refused(tmp_path: Path) -> None:
    model = tiny_multimodal()
    text = {name: tensor for name, tensor in model.state_dict().items() if not is_vision_piece(name)}
    with pytest.raises(WeightsError, match=r"vision_tower\.patch_conv\.weight: the weight is missing"):
        save_model(text, tmp_path / "m", config=model.config, vision=model.vision_config)
    with pytest.raises(WeightsError, match=r"not a weight of this model.*give the configuration of the vision"):
        save_model(model.state_dict(), tmp_path / "m", config=model.config)
    assert not list(tmp_path.iterdir())


def test_vision_that_contradicts_the_bases_is_refused(tmp_path: Path) -> None:
    hf_folder(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    assert base.config.vision is not None
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    other = dataclasses.replace(base.config.vision, rope_theta=5.0)
    with pytest.raises(WeightsError, match=r"rope_theta: is 5\.0, but the base has 10000\.0"):
        save_model(model.state_dict(), tmp_path / "out", config=model.config, vision=other, base=base)


def test_a_text_base_takes_a_new_tower(tmp_path: Path) -> None:
    native_folder(tmp_path / "base", vision=False)
    text = load_model(tmp_path / "base", dtype=torch.float32)
    seeing = tiny_multimodal(tiny_config(), tiny_vision())
    state = text.state_dict() | vision_part(seeing.state_dict())
    base = open_checkpoint(tmp_path / "base")
    save_model(state, tmp_path / "out", config=text.config, vision=seeing.vision_config, base=base)
    assert (tmp_path / "out" / "SYSTEM_PROMPT.txt").exists()
    written = load_model(tmp_path / "out", dtype=torch.float32).state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
