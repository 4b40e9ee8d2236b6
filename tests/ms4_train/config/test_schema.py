"""Rules that hold for every section: frozen, no unknown keys, every default valid, rules between keys."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ms4_train.config import evaluation, schema
from ms4_train.config.schema import PRESETS, AdapterSection, Section, TrainingSection

SECTIONS = [
    value
    for module in (schema, evaluation)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Section) and value is not Section
]
WITHOUT_REQUIRED_KEYS = [section for section in SECTIONS if not any(info.is_required() for info in section.model_fields.values())]


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_refused(section):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        section.model_validate({"surely_unknown": 1}, strict=True)


@pytest.mark.parametrize("section", WITHOUT_REQUIRED_KEYS)
def test_defaults_are_valid_and_frozen(section):
    made = section()
    assert section.model_validate(made.model_dump(), strict=True) == made  # pydantic does not validate defaults by itself
    key = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, key, getattr(made, key))


def test_an_adapter_needs_a_target():
    with pytest.raises(ValidationError, match="both empty"):
        AdapterSection(target_modules=[])
    assert AdapterSection(target_modules=[], target_parameters=["mlp.experts.down_proj"]).r == 16


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(ValidationError, match="0 steps train nothing; write"):
        TrainingSection(max_steps=0)
    assert TrainingSection(max_steps=-1).max_steps == -1


@pytest.mark.parametrize("key", ["adam_beta1", "adam_beta2"])
def test_betas_are_below_one_as_the_optimizer_wants_them(key):
    with pytest.raises(ValidationError, match="less than 1"):
        TrainingSection.model_validate({key: 1.0})


def test_dropout_and_stacked_experts_exclude_each_other():
    with pytest.raises(ValidationError, match="lora_dropout must be 0"):
        AdapterSection(lora_dropout=0.1, target_parameters=["mlp.experts.down_proj"])
    assert AdapterSection(lora_dropout=0.1).lora_dropout == 0.1


@pytest.mark.parametrize(
    ("key", "default", "expected"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)]
)
def test_what_null_means_for_quantised_weights_is_the_programs_to_say(key, default, expected):
    section = schema.ModelSection.model_validate({"path": "x", "dequantize": key})
    assert section.dequantizes(default=default) is expected


def test_preset_becomes_its_targets_and_excludes_others():
    section = AdapterSection(preset="vision")
    assert (section.target_modules, section.target_parameters) == tuple(map(list, PRESETS["vision"]))
    assert AdapterSection(**section.model_dump()) == section  # a resolved file reads back
    for key in ("target_modules", "target_parameters"):
        with pytest.raises(ValidationError, match=f"preset vision and {key} exclude each other"):
            AdapterSection(preset="vision", **{key: ["mlp.experts.down_proj"]})
    with pytest.raises(ValidationError, match="attention"):
        AdapterSection(preset="everything")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_dora": True, "preset": "language"}, "use_dora must be false.*stacked experts"),
        ({"lora_dropout": 0.1, "preset": "attention+experts"}, "lora_dropout must be 0"),
        ({"lora_dropout": 0.1, "target_parameters": ["mlp.gate.weight"]}, "lora_dropout must be 0.*router.*bare parameter.*no dropout"),
        ({"use_dora": True, "target_parameters": ["mlp.gate.weight"]}, "use_dora must be false.*router.*bare parameter.*no DoRA"),
        ({"use_dora": True, "target_parameters": ["mlp.gate.weight", "mlp.experts.down_proj"]}, "use_dora must be false.*stacked experts"),
        ({"init_lora_weights": False}, "false is not offered: B stays random.*before the first step; take default"),
        ({"init_lora_weights": "eva"}, "eva is not offered: it is computed from training data"),
        ({"init_lora_weights": "corda"}, "training data"),
        ({"init_lora_weights": "loftq"}, "quantises the base"),
        ({"init_lora_weights": "mica"}, "keeps B frozen"),
        ({"init_lora_weights": "pissa_niter_x"}, "pattern"),
        ({"init_lora_weights": "pissa", "preset": "all"}, "not computed for target_parameters"),
        ({"init_lora_weights": "orthogonal", "preset": "all"}, "not for stacked experts"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "even ranks"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"o_proj": 5}}, "even ranks"),
        ({"rank_pattern": {r"layers\.\d+\.o_proj": 4}}, "expressions are not evaluated"),
        ({"alpha_pattern": {"(a+)+": 4}}, "expressions are not evaluated"),
        ({"alpha_pattern": {"o_proj": 0}}, "greater than 0"),
    ],
)
def test_adapter_options_that_cannot_be_computed_are_refused_with_the_reason(values, words):
    with pytest.raises(ValidationError, match=words):
        AdapterSection(**values)


def test_starts():
    assert AdapterSection(init_lora_weights=True).init_lora_weights == "default"  # type: ignore[arg-type]
    assert [AdapterSection(init_lora_weights=start).changes_base for start in ("gaussian", "pissa", "pissa_niter_16", "olora")] == [
        False,
        True,
        True,
        True,
    ]
