"""Fresh weights: their moments, and independence of order, type and the other parameters."""

from __future__ import annotations

import torch
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM, init_parameter, init_weights


def test_moments_and_norms():
    model = Mistral4ForCausalLM(tiny_config())
    init_weights(model, seed=3, std=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert bool((parameter == 1).all()), name
        else:
            # 384 values at least: the mean of n values strays by std / sqrt(n), the deviation by std / sqrt(2n); five of each
            assert abs(parameter.mean().item()) < 5 * 0.05 / parameter.numel() ** 0.5, name
            assert abs(parameter.std().item() - 0.05) < 5 * 0.05 / (2 * parameter.numel()) ** 0.5, name


def test_every_norm_of_the_vision_starts_at_one():
    model = Mistral3ForConditionalGeneration(tiny_config(), tiny_vision())
    init_weights(model, seed=3, std=0.05)
    norms = [name for name, parameter in model.named_parameters() if parameter.ndim == 1 and "vision_tower" in name]
    assert len(norms) == 1 + 2 * 2
    for name, parameter in model.named_parameters():
        assert bool((parameter == 1).all()) == (parameter.ndim == 1), name


def test_values_depend_on_seed_and_name_only():
    model = Mistral4ForCausalLM(tiny_config())
    init_weights(model, seed=3)
    name = "model.layers.1.mlp.experts.down_proj"
    alone = torch.empty_like(model.get_parameter(name), dtype=torch.bfloat16)
    init_parameter(name, alone, seed=3)
    assert torch.equal(alone, model.get_parameter(name).to(torch.bfloat16))
    init_parameter(name, alone, seed=4)
    assert not torch.equal(alone, model.get_parameter(name).to(torch.bfloat16))
    assert not torch.equal(model.get_parameter(name), model.get_parameter(name.replace("1", "0")))
