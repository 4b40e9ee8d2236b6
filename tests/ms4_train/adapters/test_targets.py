"""Targets match as PEFT's do, and one that matches nothing is refused with the nearest names."""

import pytest
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.models import tiny_config

from ms4_train.adapters.targets import adaptable_linears, adaptable_stacks, find_targets, matches
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


def test_everything_adaptable_is_found_and_nothing_else(model):
    assert len(adaptable_linears(model)) == 2 * (5 + 3)
    assert len(adaptable_stacks(model)) == 2 * 2
    found = find_targets(model, ATTENTION + SHARED, STACKS)
    assert sorted(found.linear_names) == sorted(adaptable_linears(model))
    assert {f"{experts}.{stack}" for experts, stack in found.stack_names} == set(adaptable_stacks(model))


def test_targets_match_the_modules_peft_matches(model):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = ["o_proj", "mlp.shared_experts.up_proj", "layers.1.self_attn.q_b_proj"]
    settings = LoraConfig(target_modules=targets)
    theirs = [name for name, _ in model.named_modules() if check_target_module_exists(settings, name)]
    assert sorted(find_targets(model, targets, []).linear_names) == sorted(theirs)


@pytest.mark.parametrize(
    ("modules", "parameters", "words"),
    [
        (["q_proj"], [], ["adapter.target_modules", "'q_proj' matches no linear module", "q_a_proj", "q_b_proj"]),
        (["o_porj"], [], ["o_proj"]),
        (["gate_up_proj"], [], ["put it under adapter.target_parameters"]),
        ([], ["shared_experts.up_proj"], ["put it under adapter.target_modules"]),
        ([], ["mlp.experts.gate_proj"], ["adapter.target_parameters", "mlp.experts.gate_up_proj"]),
        (["mlp.gate"], [], ["cannot be adapted", "training.train_router"]),
        (["lm_head"], [], ["cannot be adapted"]),
        (["embed_tokens"], [], ["cannot be adapted"]),
        (["zzz"], [], ["nearest names"]),
        (["o_proj", "layers.7.self_attn.o_proj"], [], ["layers.7.self_attn.o_proj"]),
    ],
)
def test_target_without_match_is_refused(model, modules, parameters, words):
    with pytest.raises(AdapterError) as caught:
        find_targets(model, modules, parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)
