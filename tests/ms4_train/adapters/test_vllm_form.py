"""Adapters in vLLM's form: every change of a weight is what it was, under PEFT's rule of scales and under vLLM's.

The oracle is the stacked change of the two layers, s_q B_q A_q over s_kv B_kv A_kv, and PEFT for everything else. vLLM itself is not run.
"""

import math

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.adapters import adapter_tensors
from ms4_train.adapters.ends import by_end
from ms4_train.adapters.vllm_form import to_vllm
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.pieces import ModelConfig

OUTPUTS_Q, OUTPUTS_KV = 24, 24  # q_lora_rank; kv_lora_rank + qk_rope_head_dim
LAYER = "model.layers.1.self_attn"
SECTIONS = [
    {"preset": "attention+experts"},
    {"target_modules": ATTENTION, "use_rslora": True},
    {"target_modules": ATTENTION, "rank_pattern": {"q_a_proj": 2, "0.self_attn.o_proj": 12}, "alpha_pattern": {"kv_a_proj_with_mqa": 3}},
    {"target_modules": ["q_a_proj"]},
    {"target_modules": ["kv_a_proj_with_mqa", *SHARED], "target_parameters": ["mlp.gate.weight"]},
]


def converted(values, *, dtype=torch.float32, vision=False):
    settings = section(**values)
    tensors = adapter_tensors(adapted(settings, dtype=dtype))
    return settings, tensors, to_vllm(tensors, settings, ModelConfig(tiny_config(), tiny_vision() if vision else None), base_path="base")


def scale(settings, module, rank):
    alpha = by_end(settings.alpha_pattern, module, settings.lora_alpha)
    return alpha / (math.sqrt(rank) if settings.use_rslora else rank)


def change(settings, tensors, half, outputs):
    a = tensors.get(f"{LAYER}.{half}.lora_A.default.weight")
    if a is None:
        return torch.zeros(outputs, 64)
    b = tensors[f"{LAYER}.{half}.lora_B.default.weight"]
    return scale(settings, f"{LAYER}.{half}", len(a)) * b.float() @ a.float()


@pytest.mark.parametrize("values", SECTIONS)
def test_fused_change_is_that_of_both_layers(values):
    settings, tensors, found = converted(values)
    a, b = (found.stored[f"base_model.model.{LAYER}.fused_qkv_a_proj.lora_{side}.weight"] for side in "AB")
    expected = torch.cat([change(settings, tensors, "q_a_proj", OUTPUTS_Q), change(settings, tensors, "kv_a_proj_with_mqa", OUTPUTS_KV)])
    assert (b @ a - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert found.max_error <= 1e-6 * found.max_change
    assert found.fused == 2
    assert not any("q_a_proj" in name.replace("fused_qkv_a_proj", "") or "kv_a_proj_with" in name for name in found.stored)


@pytest.mark.parametrize("values", SECTIONS)
def test_every_pair_has_scale_one_by_both_rules(values):
    """vLLM: lora_alpha / r of the file. PEFT: the patterns, matched by PEFT itself. B then holds the old scale."""
    from peft.utils.other import get_pattern_key

    settings, tensors, found = converted(values)
    config = found.settings
    assert config["lora_alpha"] == config["r"] == found.rank
    assert not config["use_rslora"]
    for name, tensor in found.stored.items():
        module, side, _ = name.removeprefix("base_model.model.").rpartition(".lora_")[0], ".lora_A." in name, None
        if side and ".experts" not in module and ".gate" not in module:
            rank = config["rank_pattern"].get(get_pattern_key(config["rank_pattern"], module), config["r"])
            alpha = config["alpha_pattern"].get(get_pattern_key(config["alpha_pattern"], module), config["lora_alpha"])
            assert rank == alpha == len(tensor)
    for name, b in tensors.items():
        if ".lora_B." in name and "_a_proj" not in name and "mlp.gate" not in name:
            module = name.partition(".lora_B.")[0]
            stored = found.stored[f"base_model.model.{module}.lora_B.weight"]
            assert torch.allclose(stored, scale(settings, module, b.shape[1]) * b)


def test_bf16_is_rounded_once_and_the_error_says_so():
    settings, tensors, found = converted({"preset": "attention", "lora_alpha": 7.0}, dtype=torch.bfloat16)
    assert {value.dtype for value in found.stored.values()} == {torch.bfloat16}
    assert 0 < found.fold_error <= 2**-8
    assert 0 < found.max_error <= 2**-7 * found.max_change
    assert converted({"preset": "attention", "lora_alpha": 8.0}, dtype=torch.bfloat16)[2].fold_error == 0  # a power of two
    assert settings.lora_alpha == 7.0
    assert tensors


def test_names_are_those_that_vllm_maps():
    names = set(converted({"preset": "attention+experts"}, vision=True)[2].stored)
    assert f"base_model.model.{LAYER.replace('model.', 'model.language_model.')}.fused_qkv_a_proj.lora_A.weight" in names
    assert "base_model.model.model.language_model.layers.0.mlp.experts.base_layer.lora_B.weight" in names


@pytest.mark.parametrize("stack", STACKS)
def test_lone_stack_gets_a_pair_of_zeros(stack):
    found = converted({"target_modules": [], "target_parameters": [stack]})[2]
    both = converted({"target_modules": [], "target_parameters": STACKS})[2]
    assert {name: value.shape for name, value in found.stored.items()} == {name: value.shape for name, value in both.stored.items()}
    idle = [name for name in found.stored if ("base_layer" in name) == (stack == STACKS[1])]
    assert len(idle) == 4
    assert not any(found.stored[name].any() for name in idle)


@pytest.mark.parametrize(
    ("values", "vision", "message"),
    [
        ({"target_modules": ["o_proj"], "use_dora": True}, False, "DoRA"),
        ({"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, False, "trained whole"),
        ({"target_modules": ["lm_head"]}, False, "the head"),
        ({"target_modules": ["embed_tokens"]}, False, "embedding"),
        ({"preset": "vision"}, True, "vision part"),
    ],
)
def test_what_vllm_does_not_apply_is_refused(values, vision, message):
    settings = section(**values)
    tensors = adapter_tensors(adapted(settings, vision=vision, filled=False))
    with pytest.raises(AdapterError, match=message) as caught:
        to_vllm(tensors, settings, ModelConfig(tiny_config(), tiny_vision() if vision else None), base_path="base")
    assert caught.value.fix is not None
    assert "merge" in caught.value.fix
