"""Targets match as PEFT's do, and one that matches nothing is refused with the nearest names."""

import pytest
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.models import tiny_config, tiny_model
from support.multimodal import tiny_multimodal
from support.quantised_models import quantised_tiny

from ms4_train.adapters import attach
from ms4_train.adapters.targets import (
    adaptable_embeddings,
    adaptable_linears,
    adaptable_routers,
    adaptable_stacks,
    find_targets,
    matches,
    plain_modules,
)
from ms4_train.config.schema import PRESETS, AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.weights.reading.loading import empty_model


@pytest.fixture(scope="module")
def model():
    return empty_model(tiny_config())


def test_targets_are_ends_of_names_cut_at_dots():
    assert matches("q_a_proj", "model.layers.0.self_attn.q_a_proj")
    assert matches("self_attn.q_a_proj", "model.layers.0.self_attn.q_a_proj")
    assert matches("model.norm", "model.norm")
    assert not matches("a_proj", "model.layers.0.self_attn.q_a_proj")


def test_star_stands_for_anything_in_a_whole_name():
    assert matches("vision_tower.*", "vision_tower.transformer.layers.0.attention.q_proj")
    assert matches("model.layers.1.*_proj", "model.layers.1.self_attn.o_proj")
    assert not matches("layers.1.*", "model.layers.1.self_attn.o_proj")
    assert not matches("model.layers.1.*", "model.layers.11.self_attn.o_proj")


def test_everything_adaptable_is_found_and_nothing_else(model):
    assert len(adaptable_linears(model)) == 2 * (5 + 3) + 1
    assert adaptable_embeddings(model) == ["model.embed_tokens"]
    assert len(adaptable_stacks(model)) == 2 * 2
    assert adaptable_routers(model) == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]
    found = find_targets(model, [*ATTENTION, *SHARED, "lm_head", "embed_tokens"], [*STACKS, "mlp.gate.weight"])
    assert sorted(found.module_names) == sorted([*adaptable_linears(model), *adaptable_embeddings(model)])
    assert {f"{experts}.{stack}" for experts, stack in found.stack_names} == set(adaptable_stacks(model))
    assert found.router_names == adaptable_routers(model)
    assert len(adaptable_linears(tiny_multimodal())) == 2 * (5 + 3) + 1 + 2 * (4 + 3) + 3


def test_names_do_not_change_when_there_are_adapters():
    plain = tiny_model()

    def names():
        return adaptable_linears(plain), adaptable_embeddings(plain), adaptable_stacks(plain), adaptable_routers(plain)

    before, modules = names(), [name for name, _ in plain_modules(plain)]
    settings = {"target_modules": [*ATTENTION, "lm_head", "embed_tokens"], "target_parameters": [*STACKS, "mlp.gate.weight"]}
    attach(plain, AdapterSection(r=2, modules_to_save=["model.norm"], **settings))
    assert [name for name, _ in plain_modules(plain) if ".lora" not in name] == modules
    assert names() == before


@pytest.mark.parametrize("name", PRESETS)
def test_presets_match_what_they_say(name):
    found = find_targets(tiny_multimodal(), *PRESETS[name])
    assert all(found.modules.values()), "every target matches"
    vision = [each for each in found.module_names if each.startswith(("vision_tower.", "multi_modal_projector."))]
    text = [each for each in found.module_names if each not in vision]
    assert len(vision) == (2 * 7 + 3 if name in ("vision", "all") else 0)
    assert len(text) == {"attention": 2 * 5, "vision": 0}.get(name, 2 * (5 + 3))
    assert len(found.stack_names) == (0 if name in ("attention", "vision") else 4)
    assert not found.router_names
    assert not {"lm_head", "model.embed_tokens"} & set(found.module_names)


def test_what_is_excluded_or_saved_whole_is_left_out():
    model = tiny_multimodal()
    bare = find_targets(model, ["o_proj"], [])
    assert len(bare.module_names) == 4
    assert find_targets(model, ["o_proj"], [], exclude_modules=["vision_tower.*"]).module_names == bare.module_names[:2]
    assert find_targets(model, ["o_proj"], [], exclude_modules=["self_attn.o_proj"]).module_names == bare.module_names[2:]
    saved = find_targets(model, *PRESETS["all"], modules_to_save=["multi_modal_projector", "mlp.gate"])
    assert not [name for name in saved.module_names if "projector" in name]
    assert saved.saved_names == ["multi_modal_projector", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    with pytest.raises(AdapterError, match="nothing is left"):
        find_targets(model, ["o_proj"], [], exclude_modules=["o_proj"])
    with pytest.raises(AdapterError, match="matches no linear module"):
        find_targets(model, ["o_proj"], [], exclude_modules=["vision.*"])


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ("experts", ["holds routed experts", "smaller modules"]),
        ("model", ["holds routed experts"]),
        ("lm_haed", ["matches no module", "lm_head"]),
    ],
)
def test_modules_that_cannot_be_saved_whole_are_refused(model, saved, words):
    with pytest.raises(AdapterError) as caught:
        find_targets(model, ["o_proj"], [], modules_to_save=[saved])
    assert caught.value.key == "adapter.modules_to_save"
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_quantised_modules_cannot_be_saved_whole():
    with pytest.raises(AdapterError, match="quantised"):
        find_targets(quantised_tiny("fp8"), ["o_proj"], [], modules_to_save=["shared_experts"])


def test_targets_match_the_modules_peft_matches(model):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = ["o_proj", "mlp.shared_experts.up_proj", "layers.1.self_attn.q_b_proj"]
    settings = LoraConfig(target_modules=targets)
    theirs = [name for name, _ in model.named_modules() if check_target_module_exists(settings, name)]
    assert sorted(find_targets(model, targets, []).module_names) == sorted(theirs)


@pytest.mark.parametrize(
    ("modules", "parameters", "words"),
    [
        (["q_proj"], [], ["adapter.target_modules", "'q_proj' matches no linear module", "q_a_proj", "q_b_proj"]),
        (["o_porj"], [], ["o_proj"]),
        (["gate_up_proj"], [], ["put it under adapter.target_parameters"]),
        ([], ["shared_experts.up_proj"], ["put it under adapter.target_modules"]),
        ([], ["mlp.experts.gate_proj"], ["adapter.target_parameters", "mlp.experts.gate_up_proj"]),
        (["mlp.gate"], [], ["is a router", "mlp.gate.weight under adapter.target_parameters"]),
        ([], ["weight"], ["every weight", "mlp.gate.weight"]),
        (["feed_forward.up_proj"], [], ["no vision tower", "preset: language"]),
        (["zzz"], [], ["nearest names"]),
        (["o_proj", "layers.7.self_attn.o_proj"], [], ["layers.7.self_attn.o_proj"]),
    ],
)
def test_target_without_match_is_refused(model, modules, parameters, words):
    with pytest.raises(AdapterError) as caught:
        find_targets(model, modules, parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)
