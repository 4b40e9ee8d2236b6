"""Rotary embedding against transformers' functions and against the numbers of the specification."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.models import hf_config, tiny_config

from ms4_train.model import RopeParameters, TextConfig
from ms4_train.model.rope import RotaryTable, apply_rotary, llama4_query_scale, yarn_frequencies

CONFIGS = {
    "release": TextConfig(softmax_scale="mscale"),
    "small": tiny_config(softmax_scale="mscale"),
    "no truncation": tiny_config(softmax_scale="mscale", qk_rope_head_dim=32, rope_parameters=RopeParameters(truncate=False, factor=8.0)),
    "uneven mscale": tiny_config(softmax_scale="mscale", rope_parameters=RopeParameters(mscale=0.7, mscale_all_dim=0.4)),
    "step": tiny_config(softmax_scale="mscale", rope_parameters=RopeParameters(original_max_position_embeddings=4, beta_fast=1.0)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_and_factor_equal_transformers(name):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = CONFIGS[name]
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](hf_config(config))
    torch.testing.assert_close(yarn_frequencies(config.rope_parameters, config.qk_rope_head_dim), expected, rtol=1e-6, atol=0)
    assert config.rope_parameters.cos_sin_factor == pytest.approx(factor, rel=1e-12)


def test_release_ramp_runs_from_lane_12_to_25():
    """Section 2.1: lanes 0..12 keep their frequency, 25..31 are divided by 128."""
    plain_f = 1e4 ** -(torch.arange(0, 64, 2) / 64)
    ratio_f = plain_f / yarn_frequencies(RopeParameters(), 64)
    torch.testing.assert_close(ratio_f[:13], torch.ones(13))
    torch.testing.assert_close(ratio_f[25:], torch.full((7,), 128.0))
    assert (ratio_f[13:25] > 1.05).all()
    assert (ratio_f[13:25] < 127).all()


def test_rotation_equals_transformers_up_to_the_order_of_lanes():
    from transformers.models.mistral4.modeling_mistral4 import Mistral4RotaryEmbedding, apply_rotary_pos_emb_interleave

    config = CONFIGS["uneven mscale"]
    position_t = torch.tensor([0, 1, 17, 300, 4000])
    query, key = torch.randn(1, 2, 5, 8), torch.randn(1, 1, 5, 8)
    expected, _ = apply_rotary_pos_emb_interleave(query, key, *Mistral4RotaryEmbedding(hf_config(config))(query, position_t[None]))

    actual = apply_rotary(query, *RotaryTable(config)(position_t))

    evens_then_odds = actual.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)  # transformers moves each pair apart
    torch.testing.assert_close(evens_then_odds, expected, rtol=1e-5, atol=1e-5)  # angles of up to 4e3 in fp32


def test_half_precision_is_rotated_in_fp32():
    config = tiny_config()
    x = torch.randn(6, 8).to(torch.bfloat16)
    tables = RotaryTable(config)(torch.arange(6))
    assert torch.equal(apply_rotary(x, *tables), apply_rotary(x.float(), *tables).to(torch.bfloat16))


def test_table_built_under_the_meta_device_still_holds_numbers():
    with torch.device("meta"):
        table = RotaryTable(tiny_config())
        frequencies = table(torch.arange(3, device="cpu"))
    assert [x.device.type for x in frequencies] == ["cpu", "cpu"]


def test_query_scale_equals_transformers_and_is_one_at_first():
    from transformers.models.mistral4.modeling_mistral4 import get_llama_4_attn_scale

    rope = dataclasses.replace(RopeParameters(), original_max_position_embeddings=32)
    position_t = torch.arange(200)
    scale_t = llama4_query_scale(position_t, rope)
    torch.testing.assert_close(scale_t, get_llama_4_attn_scale(position_t[None], 0.1, 32).flatten(), rtol=1e-6, atol=0)
    assert (scale_t[:32] == 1.0).all()
    assert scale_t[32] > 1.0
