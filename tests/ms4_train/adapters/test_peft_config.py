"""What a PEFT configuration may say; everything that would be computed differently here is refused with its key."""

import dataclasses
from pathlib import Path

import pytest
from support.models import tiny_config

from ms4_train.adapters.peft_config import section_from_peft, shortest_targets
from ms4_train.errors import AdapterError
from ms4_train.weights.reading.loading import empty_model

FILE = Path("a/adapter_config.json")
O_PROJ = [f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{side}.weight" for layer in range(2) for side in "AB"]
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["o_proj"], "target_parameters": None}


@pytest.fixture(scope="module")
def model():
    return empty_model(tiny_config())


def read(model, changes=None, stored=O_PROJ):
    return section_from_peft(PLAIN | (changes or {}), dict.fromkeys(stored), model, file=FILE)


def test_plain_lora_is_read(model):
    section = read(model, {"use_rslora": True, "lora_dropout": 0.1})
    assert (section.r, section.lora_alpha, section.lora_dropout, section.use_rslora) == (4, 8.0, 0.1, True)
    assert (section.target_modules, section.target_parameters) == (["o_proj"], [])


def test_targets_of_other_models_in_a_list_are_left_out(model):
    assert read(model, {"target_modules": ["q_proj", "o_proj", "k_proj"], "target_parameters": ["block_sparse.w1"]}).target_modules == [
        "o_proj"
    ]


def test_expressions_are_replaced_by_what_the_file_holds(model):
    assert read(model, {"target_modules": "all-linear"}).target_modules == ["o_proj"]
    assert read(model, {"target_modules": ".*o_proj"}, O_PROJ[:2]).target_modules == ["0.self_attn.o_proj"]


def test_shortest_targets_match_exactly():
    known = ["a.0.x", "a.1.x", "a.0.y", "b.0.y"]
    assert shortest_targets(["a.0.x", "a.1.x"], known) == ["x"]
    assert shortest_targets(["a.0.x", "a.0.y"], known) == ["0.x", "a.0.y"]
    assert shortest_targets([], known) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"o_proj": 2}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"r": "4"}, "r"),
        ({"r": 0}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": 2}, "lora_dropout"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"target_parameters": "experts"}, "target_parameters"),
        ({"target_modules": [], "target_parameters": []}, None),
    ],
)
def test_what_is_not_plain_lora_is_refused(model, changes, key):
    with pytest.raises(AdapterError) as caught:
        read(model, changes)
    assert caught.value.key == key
    assert caught.value.file == str(FILE)


def test_tensors_without_a_place_are_refused(model):
    stored = [*O_PROJ, "base_model.model.model.layers.0.mlp.experts.lora_A.weight"]
    with pytest.raises(AdapterError, match=r"nothing to adapt at model\.layers\.0\.mlp\.experts"):
        read(model, stored=stored)


def test_every_setting_of_peft_is_known_here(model):
    """A new kind of adapter in PEFT shows up here as a key nobody has decided about."""
    from peft import LoraConfig

    from ms4_train.adapters.peft_config import _PLAIN

    harmless = {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "target_parameters", "layers_pattern"),
        *("init_lora_weights", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
    }
    known = harmless | set(_PLAIN)
    assert {item.name for item in dataclasses.fields(LoraConfig)} - known == set()
