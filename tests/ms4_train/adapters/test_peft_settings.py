"""What is written into ``adapter_config.json``: what the section says where PEFT understands it, and else what means the same there.

That PEFT rebuilds the adapter from it is tested in ``test_files_exchange.py``.
"""

import pytest
from support.adapted import adapted, section
from support.checkpoints import STACKS
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.adapters import adapter_tensors
from ms4_train.adapters.peft_settings import peft_settings
from ms4_train.weights.layouts.pieces import ModelConfig


def written(*, vision=False, **values):
    settings = section(**values)
    tensors = adapter_tensors(adapted(settings, vision=vision, filled=False))
    return peft_settings(settings, tensors, ModelConfig(tiny_config(), tiny_vision() if vision else None), base_path="base")


@pytest.mark.parametrize("vision", [False, True])
def test_plain_ends_are_kept(vision):
    found = written(vision=vision, target_modules=["self_attn.o_proj", "q_a_proj"], target_parameters=[*STACKS, "mlp.gate.weight"])
    assert set(found["target_modules"]) == {"self_attn.o_proj", "q_a_proj"}
    assert set(found["target_parameters"]) == {*STACKS, "mlp.gate.weight"}
    assert (found["r"], found["lora_alpha"], found["base_model_name_or_path"]) == (4, 7, "base")
    assert (found["inference_mode"], found["modules_to_save"], found["rank_pattern"]) == (True, None, {})


@pytest.mark.parametrize(
    ("values", "targets"),
    [
        ({"target_modules": ["vision_tower.*.o_proj"]}, {"attention.o_proj"}),
        ({"target_modules": ["o_proj"], "exclude_modules": ["self_attn.o_proj"]}, {"attention.o_proj"}),
        ({"target_modules": ["model.layers.1.self_attn.o_proj"]}, {"1.self_attn.o_proj"}),
        (
            {"target_modules": ["o_proj"], "exclude_modules": ["vision_tower.transformer.layers.0.*"]},
            {"self_attn.o_proj", "1.attention.o_proj"},
        ),
    ],
)
def test_what_peft_would_read_otherwise_is_written_as_ends(values, targets):
    assert set(written(vision=True, **values)["target_modules"]) == targets


def test_saved_modules_are_cut_where_peft_cuts():
    """``norm`` would be every norm to PEFT, which does not cut at dots."""
    assert written(target_modules=["o_proj"], modules_to_save=["lm_head"])["modules_to_save"] == ["lm_head"]
    assert written(target_modules=["o_proj"], modules_to_save=["model.norm"])["modules_to_save"] == ["model.norm"]
    assert written(vision=True, target_modules=["o_proj"], modules_to_save=["model.norm"])["modules_to_save"] == ["model.norm"]
    both = written(vision=True, target_modules=["o_proj"], modules_to_save=["multi_modal_projector.norm"])
    assert both["modules_to_save"] == ["multi_modal_projector.norm"]


def test_patterns():
    found = written(
        target_modules=["o_proj", "q_a_proj"], rank_pattern={"0.self_attn.o_proj": 2}, alpha_pattern={"o_proj": 5.0, "q_a_proj": 2.5}
    )
    assert found["rank_pattern"] == {"0.self_attn.o_proj": 2}
    assert found["alpha_pattern"] == {"o_proj": 5, "q_a_proj": 2.5}
    assert isinstance(found["alpha_pattern"]["o_proj"], int)
