"""What a PEFT configuration may say; everything that would be computed differently here is refused with its key."""

import dataclasses
from pathlib import Path

import pytest
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.adapters.peft_config import section_from_peft
from ms4_train.errors import AdapterError
from ms4_train.untrusted import TensorInfo
from ms4_train.weights.reading.loading import empty_model

FILE = Path("a/adapter_config.json")
O_PROJ = [f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{side}.weight" for layer in range(2) for side in "AB"]
WHOLE = [name.replace("model.layers", "model.language_model.layers") for name in O_PROJ]
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["o_proj"], "target_parameters": None}


@pytest.fixture(scope="module")
def model():
    return empty_model(tiny_config())


@pytest.fixture(scope="module")
def seeing():
    return empty_model(tiny_config(), vision=tiny_vision())


def header(names, rank=4):
    return {name: TensorInfo("F32", (rank, 64) if ".lora_A." in name else (64, rank), 0, 0) for name in names}


def read(model, changes=None, stored=O_PROJ):
    return section_from_peft(PLAIN | (changes or {}), header(stored), model, file=FILE)


def test_plain_lora_is_read(model):
    section = read(model, {"use_rslora": True, "lora_dropout": 0.1})
    assert (section.r, section.lora_alpha, section.lora_dropout, section.use_rslora) == (4, 8.0, 0.1, True)
    assert (section.target_modules, section.target_parameters) == (["o_proj"], [])
    assert read(model, {"use_dora": True}).use_dora


def test_targets_of_other_models_in_a_list_are_left_out(model):
    assert read(model, {"target_modules": ["q_proj", "o_proj", "k_proj"], "target_parameters": ["block_sparse.w1"]}).target_modules == [
        "o_proj"
    ]


@pytest.mark.parametrize("changes", [{"target_modules": "all-linear"}, {"exclude_modules": ["x"]}, {"layers_to_transform": [0, 1]}])
def test_what_selects_modules_is_replaced_by_what_the_file_holds(model, changes):
    assert read(model, changes).target_modules == ["o_proj"]
    assert read(model, changes, O_PROJ[:2]).target_modules == ["0.self_attn.o_proj"]


def test_text_targets_on_a_model_that_sees(seeing):
    """``o_proj`` means the tower's too, unless the file has nothing of the vision."""
    assert read(seeing).target_modules == ["self_attn.o_proj"]
    tower = "base_model.model.model.vision_tower.transformer.layers.0.attention.o_proj.lora_A.weight"
    assert read(seeing, stored=[*WHOLE, tower]).target_modules == ["o_proj"]
    assert read(seeing, stored=WHOLE[:2]).target_modules == ["o_proj"]  # layer 1 is missing, and must be missed


def test_patterns(model):
    section = read(
        model, {"r": 8, "rank_pattern": {"o_proj": 4}, "alpha_pattern": {r"^model\.layers\.0\.self_attn\.o_proj$": 2, "q_a_proj": 3}}
    )
    assert (section.r, section.rank_pattern) == (8, {"o_proj": 4})
    assert section.alpha_pattern == {"model.layers.0.self_attn.o_proj": 2}


def test_first_of_two_patterns_counts_as_in_peft(model):
    section = read(model, {"alpha_pattern": {"0.self_attn.o_proj": 2, "o_proj": 3}})
    assert section.alpha_pattern == {"0.self_attn.o_proj": 2, "1.self_attn.o_proj": 3}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern"),
        ({"rank_pattern": ["o_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"(o_proj)+": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"o_proj": "2"}}, "alpha_pattern"),
        ({"alpha_pattern": {".*": 2}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"r": "4"}, "r"),
        ({"r": 0}, "r"),
        ({"r": 5}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": 2}, "lora_dropout"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"target_parameters": "experts"}, "target_parameters"),
    ],
)
def test_what_is_not_computed_is_refused(model, changes, key):
    with pytest.raises(AdapterError) as caught:
        read(model, changes)
    assert caught.value.key == key
    assert caught.value.file == str(FILE)
    assert caught.value.fix


def test_tensors_without_a_place_are_refused(model):
    stored = [*O_PROJ, "base_model.model.model.layers.0.mlp.experts.lora_A.weight"]
    with pytest.raises(AdapterError, match=r"nothing to adapt at model\.layers\.0\.mlp\.experts"):
        read(model, stored=stored)


def test_saved_modules_are_those_of_the_list(model):
    assert read(model, {"modules_to_save": ["lm_head", "score"]}).modules_to_save == ["lm_head"]


def test_every_setting_of_peft_is_known_here():
    """A new kind of adapter in PEFT shows up here as a key nobody has decided about."""
    from peft import LoraConfig

    from ms4_train.adapters.peft_config import _PLAIN

    harmless = {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
    }
    read = {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "target_parameters", "modules_to_save"),
        *("rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    }
    assert {item.name for item in dataclasses.fields(LoraConfig)} - (harmless | read | set(_PLAIN)) == set()
