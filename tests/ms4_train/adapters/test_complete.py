"""The shapes that are expected without attaching anything are those of the adapter that is attached."""

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import ATTENTION, STACKS
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.adapters import adapter_tensors
from ms4_train.adapters.adaptable import adaptable_parts
from ms4_train.adapters.complete import check_complete, expected_shapes
from ms4_train.errors import AdapterError
from ms4_train.weights.reading.loading import empty_model

SECTIONS = [
    {"preset": "all"},
    {"target_modules": [*ATTENTION, "lm_head"], "use_dora": True},
    {"target_modules": ["embed_tokens"], "target_parameters": ["mlp.gate.weight", STACKS[1]], "rank_pattern": {"mlp.gate.weight": 2}},
    {"target_modules": ["vision_tower.*"], "exclude_modules": ["o_proj"], "modules_to_save": ["multi_modal_projector", "mlp.gate"]},
]


def shapes_of(settings):
    model = empty_model(tiny_config(), vision=tiny_vision())
    return expected_shapes(model, settings, adaptable_parts(model))


@pytest.mark.parametrize("values", SECTIONS)
def test_expected_shapes_are_those_of_the_attached_adapter(values):
    tensors = adapter_tensors(adapted(section(**values), vision=True, filled=False))
    assert shapes_of(section(**values)) == {name: tuple(value.shape) for name, value in tensors.items()}
    check_complete(tensors, shapes_of(section(**values)))


def test_other_adapters_on_the_model_do_not_count():
    settings = section(target_modules=["q_a_proj"], modules_to_save=["shared_experts", "mlp.gate", "embed_tokens"])
    other = section(target_modules=["up_proj", "q_a_proj", "embed_tokens"], target_parameters=["mlp.gate.weight"])
    model = adapted(other, vision=True)
    assert expected_shapes(model, settings, adaptable_parts(model)) == shapes_of(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "is missing"),
        (lambda tensors, name: tensors.update({"model.norm.lora_A.default.weight": torch.zeros(1)}), "is not a tensor of this adapter"),
        (lambda tensors, name: tensors.update({name: tensors[name].mT}), "it is transposed"),
        (lambda tensors, name: tensors.update({name: tensors[name][:-1]}), "but this model needs"),
        (lambda tensors, name: tensors.update({name: torch.tensor(1.0)}), "but this model needs"),
    ],
)
def test_every_other_set_is_refused(change, message):
    settings = section(preset="attention+experts")
    shapes = shapes_of(settings)
    for name in ("model.layers.0.self_attn.o_proj.lora_A.default.weight", "model.layers.1.mlp.experts.lora.down_b_edr"):
        tensors = {other: torch.zeros(size) for other, size in shapes.items()}
        change(tensors, name)
        with pytest.raises(AdapterError, match=message) as caught:
            check_complete(tensors, shapes)
        assert caught.value.key
        assert caught.value.fix
