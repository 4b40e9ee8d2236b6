"""What the targets of an adapter, and the list of unfrozen parameters, really mean."""

from __future__ import annotations

import pytest
from support.axolotl_files import PATTERN

from ms4_train.config.importing.axolotl_adapter import translate_adapter
from ms4_train.config.importing.draft import Draft
from ms4_train.config.importing.module_names import adaptable_names, kind_of
from ms4_train.config.nodes import to_document
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import ConfigError
from ms4_train.untrusted import parse_yaml

MLA = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
SHARED = [f"shared_experts.{name}_proj" for name in ("gate", "up", "down")]


def draft_of(text):
    draft = Draft(to_document(parse_yaml(text), file="a.yml"))
    translate_adapter(draft)
    return draft


def adapter_of(text):
    """The adapter section, which must be a valid one."""
    section = draft_of(f"adapter: lora\n{text}").run["adapter"]
    AdapterSection.model_validate(section)
    return section


def meant(section):
    """Full names of what the section's target_modules mean by PEFT's rule for lists."""
    return [name for name in adaptable_names() if any(name == end or name.endswith(f".{end}") for end in section["target_modules"])]


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        (f"'{PATTERN}'", {"self_attn.o_proj"}),
        ("[q_a_proj, q_b_proj]", {"self_attn.q_a_proj", "self_attn.q_b_proj"}),
        ("'.*self_attn.*_proj(_with_mqa)?'", {f"self_attn.{name}" for name in MLA}),
        ("[o_proj]", {"self_attn.o_proj", "attention.o_proj"}),  # PEFT's rule takes both towers
        (r"'.*vision_tower.*\.(q|v)_proj'", {"attention.q_proj", "attention.v_proj"}),
        ("[linear_1, lm_head]", {"multi_modal_projector.linear_1", "lm_head"}),
    ],
)
def test_targets_mean_what_they_meant(target, kinds):
    section = adapter_of(f"lora_target_modules: {target}")
    assert {kind_of(name) for name in meant(section)} == kinds
    assert set(section["target_modules"]) == kinds


def test_single_layers_are_named_one_by_one():
    section = adapter_of(r"lora_target_modules: 'model.language_model.layers.[02].self_attn.o_proj'")
    assert section["target_modules"] == ["layers.0.self_attn.o_proj", "layers.2.self_attn.o_proj"]
    section = adapter_of("lora_target_modules: [q_b_proj]\npeft_layers_to_transform: [5]")
    assert meant(section) == ["model.language_model.layers.5.self_attn.q_b_proj"]


@pytest.mark.parametrize("text", ["lora_target_linear: true", "lora_target_modules: all-linear"])
def test_all_linear_layers(text):
    section = adapter_of(text)
    assert set(section["target_modules"]) == {*(f"self_attn.{name}" for name in MLA), *SHARED}


@pytest.mark.parametrize(
    ("target", "added"),
    [
        (f"'{PATTERN}'", set()),
        ("'.*lm_head'", set()),  # an expression in a list is the end of no name
        ("lm_head", {"lm_head"}),
        ("[q_a_proj, embed_tokens]", {"embed_tokens"}),
        ("all-linear", set()),
    ],
)
def test_target_linear_adds_all_linear_modules_to_the_target(target, added):
    """axolotl hands PEFT a list of the target and the names of all linear modules, and no expression any more."""
    text = f"adapter: lora\nlora_target_modules: {target}\nlora_target_linear: "
    draft = draft_of(f"{text}true")
    section = draft.run["adapter"]
    AdapterSection.model_validate(section)
    assert {kind_of(name) for name in meant(section)} == {*(f"self_attn.{name}" for name in MLA), *SHARED, *added}
    assert not [warning for warning in draft.warnings if "far less" in warning]
    (entry,) = (entry for entry in draft.entries if entry.target == "adapter.target_modules")
    assert entry.source == "lora_target_modules, lora_target_linear"
    assert "true adds all linear modules" in entry.words
    if target == f"'{PATTERN}'":  # control
        assert "far less" in " ".join(draft_of(f"{text}false").warnings)


def test_other_keys():
    section = adapter_of(
        "lora_r: 8\nlora_alpha: 16\npeft_use_rslora: true\npeft_use_dora: true\npeft_init_lora_weights: gaussian\n"
        "lora_target_modules: [q_b_proj]\nlora_modules_to_save: [lm_head]\nlora_dropout: 0.1"
    )
    assert section == {
        "type": "lora",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "use_rslora": True,
        "use_dora": True,
        "init_lora_weights": "gaussian",
        "target_modules": ["self_attn.q_b_proj"],
        "modules_to_save": ["lm_head"],
    }


@pytest.mark.parametrize(
    "text", ["lora_target_parameters: [mlp.experts.up_proj]", "lora_target_modules: [zzz]", "lora_target_modules: 'q'"]
)
def test_targets_without_match_are_refused(text):
    with pytest.raises(ConfigError, match="Fix"):
        adapter_of(text)


def test_full_coverage_is_not_warned_of():
    draft = draft_of(f"adapter: lora\nlora_target_modules: [{', '.join(f'self_attn.{name}' for name in MLA)}]")
    assert draft.warnings == []
    partial = draft_of("adapter: lora\nlora_target_modules: [self_attn.q_a_proj]")  # control
    assert "does not match self_attn.q_b_proj" in partial.warnings[0]


@pytest.mark.parametrize(
    ("patterns", "vision", "router", "said"),
    [
        ("[model.language_model.*, lm_head, embed_tokens]", "skip", True, "embed_tokens matches no parameter from its beginning on"),
        ("[model.language_model.*, lm_head]", "skip", True, None),
        ("[model.*, lm_head]", None, True, None),
        ("[lm_head]", "skip", False, "parameters of the text network are frozen there"),
        ("['model.language_model.layers.[0-9]+.self_attn.*', lm_head]", "skip", False, "are frozen there"),
        ("['model.language_model.*', 'lm_head.weight[:100]']", "skip", True, "some rows of a parameter"),
        ("[model.language_model.*, lm_head, model.multi_modal_projector.*]", None, True, "of the vision part are frozen there"),
    ],
)
def test_unfrozen_parameters(patterns, vision, router, said):
    draft = draft_of(f"unfrozen_parameters: {patterns}")
    assert draft.run.get("model", {}).get("vision") == vision
    assert draft.run["training"]["train_router"] == router
    others = [warning for warning in draft.warnings if not warning.startswith("The routers are trained")]
    assert (said in " ".join(others)) if said else not others


def test_dots_are_literal_in_unfrozen_parameters():
    """As axolotl reads them: a dot in a pattern is no wildcard."""
    assert "matches no parameter" in " ".join(draft_of("unfrozen_parameters: [lm.head]").warnings)


def test_targets_of_the_vision_alone_are_told():
    """Names of other models' attention: in this one only the tower has them."""
    warnings = draft_of("adapter: lora\nlora_target_modules: [q_proj, v_proj]").warnings
    assert any("matches only modules of the vision" in warning for warning in warnings)
    warnings = draft_of("adapter: lora\nlora_target_modules: [up_proj]").warnings
    assert any("matches no projection of attention" in warning for warning in warnings)
