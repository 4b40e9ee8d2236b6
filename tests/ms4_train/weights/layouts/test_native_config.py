"""``params.json`` <-> configuration: the published conversion is the oracle for what each key means."""

import dataclasses
from pathlib import Path

import pytest
import torch
from support.models import tiny_config

from ms4_train.errors import WeightsError
from ms4_train.model import RopeParameters, TextConfig, VisionConfig
from ms4_train.weights.layouts.hf_config import hf_model_config, to_hf_model_config
from ms4_train.weights.layouts.native_config import native_encoding, native_model_config, to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout

FILE = Path("params.json")


def release_params():
    """The key set and values of spec sections 1.1, 1.2 and 3.2, written out by hand."""
    return {
        "dim": 4096, "n_layers": 36, "head_dim": 128, "hidden_dim": 12288, "n_heads": 32, "n_kv_heads": 32, "norm_eps": 1e-6,
        "vocab_size": 131072, "rope_theta": 10000.0, "tied_embeddings": False, "max_position_embeddings": 1048576,
        "q_lora_rank": 1024, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 8192},
        "yarn": {"alpha": 1, "apply_scale": False, "beta": 32, "factor": 128, "original_max_position_embeddings": 8192},
        "moe": {
            "expert_hidden_dim": 2048, "expert_model_parallel": 1, "expert_parallel": 1, "first_k_dense_replace": 0,
            "num_expert_groups": 1, "num_expert_groups_per_tok": 1, "num_experts": 128, "num_experts_per_tok": 4,
            "num_shared_experts": 1, "route_every_n": 1, "routed_scale": 1.0,
        },
        "vision_encoder": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "num_channels": 3,
            "patch_size": 14, "image_size": 1540, "max_image_size": 1540, "rope_theta": 10000.0, "spatial_merge_size": 2,
            "adapter_bias": False, "add_pre_mm_projector_layer_norm": True, "mm_projector_id": "patch_merge", "image_token_id": 10,
            "image_break_token_id": 12, "image_end_token_id": 13,
        },
        "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
    }  # fmt: skip


def changed(**changes):
    """The release's parameters with dotted keys replaced; None removes."""
    params = release_params()
    for dotted, value in changes.items():
        *outer, key = dotted.split("__")
        holder = params
        for name in outer:
            holder = holder[name]
        if value is None:
            del holder[key]
        else:
            holder[key] = value
    return params


def test_the_release_reads_as_the_defaults():
    assert native_model_config(release_params(), file=FILE) == ModelConfig(TextConfig(), VisionConfig())
    assert native_encoding(release_params(), file=FILE) == "fp8"


def test_the_release_is_written_key_for_key():
    assert to_params(ModelConfig(TextConfig(), VisionConfig()), Layout.NATIVE_FP8) == release_params()


@pytest.mark.parametrize("scale", ["plain", "mscale"])
def test_round_trip_of_another_model(scale):
    config = ModelConfig(dataclasses.replace(tiny_config(), softmax_scale=scale, routed_scaling_factor=2.5), None)
    params = to_params(config, Layout.NATIVE)
    assert params["yarn"]["apply_scale"] is (scale == "mscale")
    again = native_model_config(params, file=FILE)
    assert again.text.attention_scale == config.text.attention_scale
    assert to_params(again, Layout.NATIVE) == params
    assert native_encoding(params, file=FILE) == "plain"


def test_through_hugging_face_and_back():
    config = native_model_config(release_params(), file=FILE)
    back = hf_model_config(to_hf_model_config(config, dtype=torch.bfloat16, fp8=True), file=Path("config.json"))
    assert to_params(back, Layout.NATIVE_FP8) == release_params()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dim": None}, "dim"),
        ({"moe": None}, "moe"),
        ({"moe": 3}, "moe"),
        ({"moe__num_experts": None}, "moe.num_experts"),
        ({"moe__num_experts": -2}, "moe.num_experts"),
        ({"moe__first_k_dense_replace": 3}, "moe.first_k_dense_replace"),
        ({"moe__num_experts_per_tok": 200}, "moe.num_experts_per_tok"),
        ({"yarn__factor": None}, "yarn.factor"),
        ({"yarn__apply_scale": "no"}, "yarn.apply_scale"),
        ({"yarn__beta": "x"}, "yarn.beta"),
        ({"llama_4_scaling__original_max_position_embeddings": 4096}, "llama_4_scaling.original_max_position_embeddings"),
        ({"tied_embeddings": True}, "tied_embeddings"),
        ({"head_dim": 64}, "head_dim"),
        ({"vision_encoder__hidden_size": "big"}, "vision_encoder.hidden_size"),
        ({"vision_encoder__adapter_bias": True}, "vision_encoder.adapter_bias"),
        ({"quantization__qscheme_act": "TOKEN"}, "quantization.qscheme_act"),
        ({"quantization": None, "quantization_config": {"quant_method": "gptq"}}, "quantization_config.format"),
        ({"quantization_config": {"format": "nvfp4-pack-quantized"}}, "quantization_config"),  # beside FP8's own declaration
        ({"moe__num_experts": 1 << 20}, "moe.num_experts"),
    ],
)
def test_what_is_missing_or_not_computed_is_refused_in_native_words(changes, key):
    params = changed(**{name: value for name, value in changes.items() if name != "quantization_config"})
    params |= {name: value for name, value in changes.items() if name == "quantization_config"}
    with pytest.raises(WeightsError) as caught:
        native_model_config(params, file=FILE)
    assert (caught.value.key, caught.value.file) == (key, str(FILE))
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        TextConfig(norm_topk_prob=False),
        TextConfig(rope_parameters=RopeParameters(truncate=False)),
        TextConfig(rope_parameters=RopeParameters(attention_factor=1.5)),
        TextConfig(rope_parameters=RopeParameters(mscale=2.0, mscale_all_dim=2.0), softmax_scale="mscale"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(text):
    with pytest.raises(WeightsError, match="native layout cannot express"):
        to_params(ModelConfig(text), Layout.NATIVE)
