"""Several adapters on one model against PEFT's: their sum, each alone, none; which are trained; each saved by itself."""

import pytest
import torch
from support.adapted import gradients, logits_of, peft_inputs, section, shake
from support.checkpoints import ATTENTION, STACKS, relative_error
from support.models import hf_twin, tiny_model

from ms4_train.adapters import adapter_tensors, attach, load_adapter, save_adapter, set_active_adapters
from ms4_train.adapters.attach import adapter_names, adapter_parameters
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError

FIRST = {"target_modules": [*ATTENTION, "embed_tokens"], "target_parameters": ["mlp.gate.weight"]}
SECOND = {"r": 2, "lora_alpha": 5.0, "target_modules": ["o_proj", "lm_head", "embed_tokens"], "target_parameters": ["mlp.gate.weight"]}
CHOICES = [["default"], ["second"], ["default", "second"], []]


def pair(first=FIRST, second=SECOND):
    model = tiny_model()
    for name, values in (("default", first), ("second", second)):
        attach(model, section(**values), name=name)
        shake(adapter_tensors(model, name), seed=len(name))
    return model


@pytest.fixture(scope="module")
def oracle():
    from peft import LoraConfig, get_peft_model

    def config(values):
        settings = section(**values)
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.lora_alpha,
            target_modules=settings.target_modules,
            target_parameters=settings.target_parameters,
        )

    peft_model = get_peft_model(hf_twin(tiny_model()), config(FIRST))
    peft_model.add_adapter("second", config(SECOND))
    values = {f"base_model.model.{name}": value for name, value in adapter_parameters(pair()).items()}
    assert not peft_model.load_state_dict(values, strict=False).unexpected_keys
    return peft_model


@pytest.mark.parametrize("names", CHOICES)
def test_sum_equals_pefts(oracle, names):
    model = pair()
    set_active_adapters(model, names)
    given = peft_inputs(model)
    if not names:
        assert torch.equal(logits_of(model), logits_of(tiny_model()))
        return
    oracle.base_model.set_adapter(names)
    oracle.zero_grad()
    theirs = oracle.eval()(**given, use_cache=False).logits[0]
    assert relative_error(logits_of(model), theirs.detach()) < 1e-4
    torch.nn.functional.cross_entropy(theirs[:-1], given["input_ids"][0, 1:]).backward()
    expected = {name: parameter.grad for name, parameter in oracle.named_parameters() if parameter.requires_grad}
    found = {f"base_model.model.{name}": value for name, value in gradients(model).items()}
    assert found.keys() == expected.keys()
    assert all(relative_error(found[name], value) < 1e-4 for name, value in expected.items())


def test_stacks_add_up_and_only_what_acts_is_trained():
    """Against the sum of the two as one adapter with their ranks side by side and the scales inside B."""
    stacks = {"target_modules": ["o_proj"], "target_parameters": STACKS}
    model = pair(stacks, {"r": 2, "lora_alpha": 5.0, "target_modules": [], "target_parameters": STACKS[1:]})
    assert adapter_names(model) == ["default", "second"]
    set_active_adapters(model, ["default", "second"])
    both = logits_of(model)
    found = gradients(model)
    assert set(found) == set(adapter_parameters(model))
    whole = tiny_model()
    ranks = {"o_proj": 4, "experts.gate_up_proj": 4}
    attach(whole, section(**stacks, r=6, lora_alpha=6.0, rank_pattern=ranks, alpha_pattern={"o_proj": 4}))
    for name, value in adapter_tensors(whole).items():
        mine = adapter_tensors(model)[name]
        if "_b_" in name or ".lora_B." in name:
            mine = mine * (7 / 4) / (1.5 if "gate_up_b" in name else 1.0)
        if ".lora.down" in name:
            other = adapter_tensors(model, "second")[name]
            mine = torch.cat([mine, other * 2.5 if "_b_" in name else other], dim=2 if "_b_" in name else 1)
        value.copy_(mine)
    assert relative_error(both, logits_of(whole)) < 1e-4
    set_active_adapters(model, ["second"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_parameters(model, "second"))
    set_active_adapters(model, ["second"], trainable=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_each_is_saved_by_itself_and_loads_alone(tmp_path):
    model = pair()
    for name, values in (("default", FIRST), ("second", SECOND)):
        set_active_adapters(model, [name])
        folder = tmp_path / name
        settings = section(**values)
        tensors = adapter_tensors(model, name)
        save_adapter(tensors, folder, section=settings, config=model.config, base_path="base", base_fingerprint="sha256:0")
        alone = tiny_model()
        load_adapter(alone, folder, base_fingerprint="sha256:0")
        assert relative_error(logits_of(alone), logits_of(model)) < 1e-6


def test_new_adapter_acts_alone_until_told_otherwise():
    model = pair()
    acting = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert acting == set(adapter_parameters(model, "second"))
    with pytest.raises(AdapterError, match="already"):
        attach(model, section(**SECOND), name="second")
    with pytest.raises(AdapterError, match="no name"):
        attach(model, section(**SECOND), name="a.b")


def test_what_cannot_act_together_is_refused():
    model = pair()
    with pytest.raises(AdapterError, match=r"no adapter 'secnod'.*second"):
        set_active_adapters(model, ["secnod"])
    model = pair(FIRST, {"target_modules": ["o_proj"], "use_dora": True})
    with pytest.raises(AdapterError, match="DoRA"):
        set_active_adapters(model, ["default", "second"])
    saved = {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}
    model = pair(saved, saved)
    with pytest.raises(AdapterError, match="saved whole by"):
        set_active_adapters(model, ["default", "second"])
    set_active_adapters(model, ["default"])
    model = tiny_model()
    attach(model, AdapterSection(r=4, init_lora_weights="pissa"))
    with pytest.raises(AdapterError, match="taken out of the base"):
        set_active_adapters(model, [])
