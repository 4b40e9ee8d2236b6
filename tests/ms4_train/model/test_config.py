"""The configuration: the release's numbers, transformers' own dictionary, and refusals that name the key."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from support.models import tiny_config

from ms4_train.errors import WeightsError
from ms4_train.model import RopeParameters, TextConfig

RELEASE = Path(__file__).parents[3] / "configs" / "models" / "mistral-small-4.yaml"


def test_release_has_the_published_number_of_parameters():
    assert TextConfig().num_parameters() == 118_972_826_624


def test_release_file_is_the_default():
    from ruamel.yaml import YAML

    assert TextConfig.from_dict(YAML(typ="safe").load(RELEASE.read_text())) == TextConfig()


def test_reads_the_dictionary_that_transformers_writes(caplog):
    from transformers import Mistral4Config

    with caplog.at_level(logging.WARNING):
        config = TextConfig.from_dict(Mistral4Config().to_dict())
    rope = dataclasses.replace(config.rope_parameters, partial_rotary_factor=None)
    assert dataclasses.replace(config, rope_parameters=rope) == TextConfig()
    assert not caplog.records


@pytest.mark.parametrize("config", [TextConfig(), tiny_config(softmax_scale="mscale", pad_token_id=None)])
def test_survives_a_round_trip(config):
    assert TextConfig.from_dict(config.to_dict()) == config


def test_attention_scales():
    """Section 0.1 of the specification gives both numbers."""
    assert TextConfig().attention_scale == pytest.approx(0.0883883, abs=1e-7)
    assert TextConfig(softmax_scale="mscale").attention_scale == pytest.approx(0.1949695, abs=1e-7)
    assert TextConfig.from_dict({}, softmax_scale="mscale").softmax_scale == "mscale"


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1.0),
        ({"mscale_all_dim": 0.0}, 1.4852),
        ({"mscale_all_dim": None}, 1.4852),
        ({"attention_factor": 0.5}, 0.5),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_cos_sin_factor(changes, factor):
    assert RopeParameters(**changes).cos_sin_factor == pytest.approx(factor, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model_type": "mistral"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"eos_token_id": [2]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        ({"softmax_scale": "auto"}, "softmax_scale"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.factor"),
        ({"rope_parameters": RopeParameters().__dict__ | {"rope_type": "linear"}}, "rope_parameters.rope_type"),
        ({"rope_parameters": RopeParameters().__dict__ | {"beta_fast": "32"}}, "rope_parameters.beta_fast"),
        ({"rope_parameters": RopeParameters().__dict__ | {"factor": 0}}, "rope_parameters.factor"),
        ({"rope_parameters": RopeParameters().__dict__ | {"rope_theta": 1.0}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": RopeParameters().__dict__ | {"rope_theta": -5}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": RopeParameters().__dict__ | {"beta_slow": 0.0}}, "rope_parameters.beta_slow"),
        ({"rope_parameters": RopeParameters().__dict__ | {"attention_factor": 0.0}}, "rope_parameters.attention_factor"),
        ({"rope_parameters": RopeParameters().__dict__ | {"partial_rotary_factor": 1.0}}, "rope_parameters.partial_rotary_factor"),
    ],
)
def test_what_the_network_does_not_compute_is_refused(values, key):
    with pytest.raises(WeightsError) as refusal:
        TextConfig.from_dict(values)
    assert refusal.value.key == key
    assert refusal.value.fix


def test_older_spellings_and_absent_values():
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "llama_4_scaling_beta": 0.1}
    config = TextConfig.from_dict({"rope_parameters": rope, "rope_theta": 5e5, "num_attention_heads": 4})
    assert (config.rope_parameters.rope_type, config.rope_parameters.rope_theta) == ("yarn", 5e5)
    assert config.rope_parameters.mscale_all_dim is None
    assert config.num_key_value_heads == 4


def test_unknown_keys_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        TextConfig.from_dict({"moe_magic": 1, "rope_parameters": RopeParameters().__dict__ | {"twist": 2}})
    assert ["moe_magic" in caplog.text, "twist" in caplog.text] == [True, True]
