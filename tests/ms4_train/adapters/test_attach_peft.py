"""Forward pass and gradients against PEFT over transformers' models, option by option; stacks are in ``test_attach``.

Tolerance 1e-4 of the largest value (fp32 sums in another order); the models' own parity is 1e-4 as well.
"""

import pytest
from support.adapted import adapted, compare_with_peft, peft_twin, section
from support.checkpoints import ATTENTION, SHARED

from ms4_train.config.schema import PRESETS

TEXT = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
    "router and attention": {"target_modules": ["o_proj"], "target_parameters": ["mlp.gate.weight"], "use_rslora": True},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "dora": {"target_modules": [*ATTENTION, *SHARED, "lm_head"], "use_dora": True},
    "dora and rslora": {"target_modules": ["o_proj", "q_b_proj"], "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": [*ATTENTION, "embed_tokens"],
        "rank_pattern": {"q_a_proj": 2, "layers.1.self_attn.o_proj": 6, "embed_tokens": 3},
        "alpha_pattern": {"self_attn.o_proj": 3.0, "embed_tokens": 1.0},
    },
    "saved whole": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens", "mlp.gate", "q_a_layernorm"]},
    "saved whole beside its parts": {"target_modules": [*ATTENTION, *SHARED], "modules_to_save": ["shared_experts"]},
}
VISION = {
    "vision": {"preset": "vision"},
    "attention never touches the tower": {"preset": "attention"},
    "a bare end matches both towers": {"target_modules": ["o_proj"]},
    "vision, dora": {"preset": "vision", "use_dora": True},
    "projector saved whole": {"target_modules": ["attention.q_proj", "linear_1"], "modules_to_save": ["multi_modal_projector"]},
}


def lora_config(settings):
    from peft import LoraConfig

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        rank_pattern=settings.rank_pattern,
        alpha_pattern=settings.alpha_pattern,
        target_modules=settings.target_modules,
        target_parameters=settings.target_parameters or None,
        modules_to_save=settings.modules_to_save or None,
    )


@pytest.mark.parametrize("name", TEXT)
def test_text_equals_peft(name):
    settings = section(**TEXT[name])
    model = adapted(settings)
    compare_with_peft(model, peft_twin(model, lora_config(settings)))


@pytest.mark.parametrize("name", VISION)
def test_vision_equals_peft(name):
    settings = section(**VISION[name])
    model = adapted(settings, vision=True)
    compare_with_peft(model, peft_twin(model, lora_config(settings)))


def test_a_wrong_scale_is_noticed():
    """Negative control of the comparison."""
    settings = section(target_modules=["o_proj"])
    model = adapted(settings)
    with pytest.raises(AssertionError):
        compare_with_peft(model, peft_twin(model, lora_config(section(target_modules=["o_proj"], lora_alpha=7.1))))


def test_presets_name_what_the_issue_says():
    assert set(PRESETS) == {"attention", "attention+experts", "all", "vision", "language"}
    assert PRESETS["language"] == PRESETS["attention+experts"]
    assert all(len(set(targets)) == len(targets) for pair in PRESETS.values() for targets in pair)
