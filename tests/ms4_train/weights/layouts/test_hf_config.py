"""Configurations are read from what transformers writes, and written so that transformers computes the trained scale."""

import json

import pytest
import torch
from support.models import hf_config, tiny_config

from ms4_train.errors import MS4Error, UntrustedInputError, WeightsError
from ms4_train.weights.layouts.hf_config import to_generation_config, to_hf_config
from ms4_train.weights.layouts.model_config import read_config


def write(folder, content, name="config.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def release_like(**changes):
    """A flat configuration as transformers has it for the release: mscale_all_dim 1."""
    config = tiny_config(softmax_scale="mscale")
    return json.loads(hf_config(config).to_json_string()) | changes


def test_transformers_configuration_is_read_flat_and_nested(tmp_path):
    flat = read_config(write(tmp_path / "flat", release_like()))
    assert flat == tiny_config(pad_token_id=None, rope_parameters=flat.rope_parameters)
    assert flat.rope_parameters.factor == 16.0
    outer = {"model_type": "mistral3", "text_config": release_like(), "vision_config": {}, "tie_word_embeddings": False}
    assert read_config(write(tmp_path / "nested", outer)) == flat


def test_older_spelling_of_the_rotary_settings_is_read(tmp_path):
    content = release_like()
    rope = content.pop("rope_parameters")
    content |= {"rope_scaling": rope, "rope_theta": rope.pop("rope_theta")}
    assert read_config(write(tmp_path / "m", content)).rope_parameters.rope_theta == 10000.0


def test_softmax_scale_is_decided_in_the_documented_order(tmp_path):
    folder = write(tmp_path / "m", release_like())
    assert read_config(folder).softmax_scale == "plain"  # mscale_all_dim 1 without apply_scale is the release
    write(folder, release_like(softmax_scale="mscale"))
    assert read_config(folder).softmax_scale == "mscale"
    write(folder, {"dim": 64, "yarn": {"apply_scale": False}}, "params.json")
    assert read_config(folder).softmax_scale == "plain"
    write(folder, {"yarn": {"apply_scale": True}}, "params.json")
    assert read_config(folder).softmax_scale == "mscale"
    assert read_config(folder, softmax_scale="plain").softmax_scale == "plain"
    write(folder, {"yarn": {"apply_scale": "yes"}}, "params.json")
    with pytest.raises(WeightsError, match="apply_scale"):
        read_config(folder)


@pytest.mark.parametrize("scale", ["plain", "mscale"])
def test_written_configuration_gives_transformers_the_same_constants(tmp_path, scale):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.mistral4.modeling_mistral4 import Mistral4Attention

    config = tiny_config(softmax_scale=scale)
    folder = write(tmp_path / "m", to_hf_config(config, dtype=torch.bfloat16))
    theirs = AutoConfig.from_pretrained(folder)
    assert theirs.model_type == "mistral4"
    assert theirs.dtype == torch.bfloat16
    with torch.device("meta"):
        assert Mistral4Attention(theirs, 0).scaling == pytest.approx(config.attention_scale, rel=1e-12)
    assert ROPE_INIT_FUNCTIONS["yarn"](theirs)[1] == pytest.approx(config.rope_parameters.cos_sin_factor, rel=1e-12)
    again = read_config(folder)
    assert again.softmax_scale == scale
    assert again.attention_scale == config.attention_scale
    assert to_hf_config(again, dtype=torch.bfloat16) == to_hf_config(config, dtype=torch.bfloat16)


def test_plain_scale_without_attention_factor_would_be_wrong(tmp_path):
    """Negative control: leaving out attention_factor moves transformers' factor on cosines and sines."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    content = to_hf_config(tiny_config(), dtype=torch.float32)
    del content["rope_parameters"]["attention_factor"]
    theirs = AutoConfig.from_pretrained(write(tmp_path / "m", content))
    assert ROPE_INIT_FUNCTIONS["yarn"](theirs)[1] > 1.2


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"n_group": 8}, "n_group"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"model_type": "mistral"}, "model_type"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quantization_config"),
        (
            {"quantization_config": {"quant_method": "fp8"}, "text_config": {"quantization_config": {"quant_method": "awq"}}},
            "text_config.quant",
        ),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"num_experts_per_tok": 99}, "num_experts_per_tok"),
        ({"softmax_scale": "half"}, "softmax_scale"),
        ({"text_config": 3}, "text_config"),
        ({"text_config": {}, "tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_computed_here_is_refused_with_file_and_key(tmp_path, changes, key):
    with pytest.raises(WeightsError) as caught:
        read_config(write(tmp_path / "m", release_like(**changes)))
    assert key in (caught.value.key or "")
    assert caught.value.file == str(tmp_path / "m" / "config.json")
    assert caught.value.fix


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"hidden_size": NaN}', "\xff"])
def test_bytes_that_are_no_configuration_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((WeightsError, UntrustedInputError)):
        read_config(tmp_path)


def test_missing_folder_and_file_are_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(MS4Error, match=r"config\.json"):
        read_config(tmp_path)


def test_generation_configuration_holds_the_special_ids():
    assert to_generation_config(tiny_config()) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}


def test_several_end_ids_give_the_first(tmp_path):
    assert read_config(write(tmp_path / "m", release_like(eos_token_id=[2, 32000]))).eos_token_id == 2
