"""The model as a run gets it: what is quantised, what is trained, on which experts; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import ATTENTION, STACKS
from support.every_layout import NAMES, QUANTISED, write_layout
from support.sft_files import sft_run

from ms4_recipes.prepare_model import PreparedModel, prepare_model
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from ms4_train.model.quantised import is_quantised, quantised_modules
from ms4_train.parallel import Mesh
from ms4_train.weights.layouts.tables import is_vision_name

LORA = {"r": 2, "target_modules": ATTENTION, "target_parameters": STACKS}


def prepare(base: Path, mesh: Mesh | None = None, *, images: bool = True, **sections: Any) -> PreparedModel:
    model = {"path": str(base), **sections.pop("model", {})}
    return prepare_model(sft_run(base.parent, model=model, **sections), mesh or Mesh(), "sha256:0", images=images)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_stay_quantised_and_trained_ones_do_not(tmp_path: Path, name: str) -> None:
    base = write_layout(tmp_path, name).folder
    lora, full = prepare(base, adapter=LORA), prepare(base)
    assert is_quantised(lora.model) == (name in QUANTISED)
    assert not is_quantised(full.model)
    assert all(parameter.requires_grad == ("lora" in key) for key, parameter in lora.model.named_parameters())
    assert all(parameter.requires_grad != key.endswith("mlp.gate.weight") for key, parameter in full.model.named_parameters())
    assert not is_quantised(prepare(base, adapter=LORA, model={"dequantize": True}).model)
    assert (lora.base_weights is None) == (name not in QUANTISED)
    if name not in QUANTISED:
        assert not is_quantised(prepare(base, model={"dequantize": False}).model), "bf16 weights ignore the key"
        return
    with pytest.raises(ConfigError) as caught:
        prepare(base, model={"dequantize": False})
    assert caught.value.key == "model.dequantize"
    assert caught.value.fix == "leave it out, or add an adapter section."
    assert QUANTISED[name] in str(caught.value)


def test_a_rank_reads_the_codes_of_its_own_experts(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "native-fp8").folder
    whole = dict(quantised_modules(prepare(base, adapter=LORA).model))
    mesh = Mesh(rank=1, world_size=4, expert_parallel_size=4, expert_parallel_rank=1)
    part = dict(quantised_modules(prepare(base, mesh, adapter=LORA).model))
    assert whole.keys() == part.keys()
    for name, module in part.items():
        codes, expected = module.value().tensors[0], whole[name].value().tensors[0]
        assert torch.equal(codes, expected[2:4] if codes.ndim == 3 else expected), name


def trained_vision(prepared: PreparedModel) -> set[str]:
    return {name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad and is_vision_name(name)}


def test_rows_without_images_leave_the_vision_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_layout(tmp_path, "native").folder
    assert len(trained_vision(prepare(base))) == 24
    assert not caplog.records
    text = prepare(base, images=False)
    assert not trained_vision(text)
    assert [record.getMessage() for record in caplog.records] == ["the training rows hold no images: 24 vision weights stay as they are."]
    assert text.model.get_parameter("lm_head.weight").requires_grad
    assert type(prepare(base, images=False, model={"vision": "skip"}).model) is Mistral4ForCausalLM


def test_an_adapter_on_the_vision_without_images_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_layout(tmp_path, "native").folder
    adapter = {"r": 2, "target_modules": ["patch_merger.merging_layer", "q_a_proj"]}
    assert len(trained_vision(prepare(base, images=False, adapter=adapter))) == 2
    assert ["adapter's 2 tensors on the vision" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(ConfigError, match="on the vision alone, and no training row holds an image"):
        prepare(base, images=False, adapter={"r": 2, "target_modules": ["patch_merger.merging_layer"]})


def test_ranks_run_the_vision_in_every_pass(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "native").folder
    for mesh, expected in ((Mesh(), False), (Mesh(rank=1, world_size=2), True)):
        model = prepare(base, mesh).model
        assert isinstance(model, Mistral3ForConditionalGeneration)
        assert model.always_run_vision == expected


def test_presets_reach_the_vision_and_say_what_they_match(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "hf").folder
    prepared = prepare(base, adapter={"r": 2, "preset": "all", "exclude_modules": ["vision_tower.*"]})
    assert prepared.attached is not None
    assert prepared.adapter is not None
    trained = [name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("multi_modal_projector.") for name in trained)
    assert not any(name.startswith("vision_tower.") for name in trained)
    assert {row.target: row.modules for row in prepared.attached.rows}["attention.q_proj"] == 0
    assert prepared.attached.trainable == sum(row.parameters for row in prepared.attached.rows)


def test_router_is_trained_with_an_adapter_only_where_it_is_named(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "hf").folder
    with pytest.raises(ConfigError) as caught:
        prepare(base, adapter=LORA, training={"train_router": True})
    assert "mlp.gate" in str(caught.value.fix)
    for section in ({"target_parameters": ["mlp.gate.weight"]}, {"modules_to_save": ["mlp.gate"]}):
        prepared = prepare(base, adapter={"r": 2, **section})
        assert any(".mlp.gate." in name and parameter.requires_grad for name, parameter in prepared.model.named_parameters())


def test_dora_needs_whole_base_weights(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "hf").folder
    dora = {"r": 2, "use_dora": True}
    mesh = Mesh(rank=0, world_size=2)
    with pytest.raises(ConfigError) as caught:
        prepare(base, mesh, adapter=dora, parallel={"zero_stage": 3})
    assert caught.value.key == "adapter.use_dora"
    prepare(base, mesh, adapter=dora)
    prepare(base, adapter=dora, parallel={"zero_stage": 3})  # one process needs no ZeRO
