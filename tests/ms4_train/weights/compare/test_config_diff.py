"""Every key of the configuration is either shown to leave logits alone, or counted as arithmetic."""

import dataclasses

import pytest
import torch
from support.checkpoints import our_logits
from support.models import tiny_config, tiny_model

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.compare.config_diff import COSMETIC, compare_configs
from ms4_train.weights.layouts.pieces import ModelConfig

OTHER = {
    "initializer_range": 0.5,
    "intermediate_size": 4242,
    "max_position_embeddings": 777,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 7,
}
OTHER_ROPE = {"max_position_embeddings": 99, "partial_rotary_factor": 0.5}


def with_rope(config: TextConfig, **changes) -> TextConfig:
    return dataclasses.replace(config, rope_parameters=dataclasses.replace(config.rope_parameters, **changes))


def differences(a, b):
    return {found.key: found.is_computational for found in compare_configs(ModelConfig(a), ModelConfig(b))}


def test_cosmetic_keys_leave_logits_alone():
    base = tiny_config()
    expected = our_logits(tiny_model(base))
    changed = [dataclasses.replace(base, **{key: value}) for key, value in OTHER.items()]
    changed += [with_rope(base, **{key: value}) for key, value in OTHER_ROPE.items()]
    keys = [*OTHER, *(f"rope_parameters.{key}" for key in OTHER_ROPE)]
    for key, config in zip(keys, changed, strict=True):
        assert torch.equal(our_logits(tiny_model(config)), expected), key
        assert differences(base, config) == {key: False}
    through = {"softmax_scale", *(f"rope_parameters.{key}" for key in ("mscale", "mscale_all_dim", "attention_factor"))}
    assert {*keys, *through} == COSMETIC


@pytest.mark.parametrize(
    ("change", "acts_through"),
    [
        (lambda c: dataclasses.replace(c, softmax_scale="mscale"), "attention_scale"),
        (lambda c: with_rope(c, attention_factor=1.3), "cos_sin_factor"),
        (lambda c: with_rope(c, mscale=0.5), "cos_sin_factor"),
        (lambda c: with_rope(c, factor=3.0), "rope_parameters.factor"),
        (lambda c: with_rope(c, beta_fast=2.0), "rope_parameters.beta_fast"),
        (lambda c: with_rope(c, truncate=False), "rope_parameters.truncate"),
        (lambda c: dataclasses.replace(c, rms_norm_eps=1e-2), "rms_norm_eps"),
        (lambda c: dataclasses.replace(c, norm_topk_prob=False), "norm_topk_prob"),
        (lambda c: dataclasses.replace(c, routed_scaling_factor=2.0), "routed_scaling_factor"),
        (lambda c: dataclasses.replace(c, num_experts_per_tok=3), "num_experts_per_tok"),
    ],
)
def test_what_moves_logits_is_arithmetic(change, acts_through):
    base = tiny_config()
    other = change(base)
    assert not torch.equal(our_logits(tiny_model(other)), our_logits(tiny_model(base)))
    assert differences(base, other)[acts_through] is True


def test_two_ways_to_write_plain_are_one_arithmetic():
    """``mscale_all_dim`` 1 under the plain scale, and 0 with ``attention_factor`` 1 (spec section 0.1)."""
    base = tiny_config()
    other = with_rope(base, mscale_all_dim=0.0, attention_factor=1.0)
    assert not any(differences(base, other).values())
    assert len(differences(base, other)) == 2


def test_vision_keys_and_order():
    text = tiny_config()
    a = ModelConfig(text, VisionConfig())
    b = ModelConfig(dataclasses.replace(text, pad_token_id=3, rms_norm_eps=1e-5), VisionConfig(rope_theta=5.0))
    found = compare_configs(a, b)
    assert [(one.key, one.a, one.b) for one in found] == [
        ("rms_norm_eps", 1e-6, 1e-5),
        ("vision.rope_theta", 10000.0, 5.0),
        ("pad_token_id", 11, 3),
    ]
    assert [one.is_computational for one in found] == [True, True, False]
    only = compare_configs(a, ModelConfig(text))
    assert only
    assert all(one.key.startswith("vision.") and one.b is None for one in only)
