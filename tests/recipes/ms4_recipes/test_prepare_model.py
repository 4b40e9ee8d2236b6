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
from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from ms4_train.model.quantised import is_quantised, quantised_modules
from ms4_train.parallel import Mesh, progress
from ms4_train.weights import load_model
from ms4_train.weights.layouts.tables import is_vision_name
from ms4_train.weights.reading.shares import share_of

LORA = {"r": 2, "target_modules": ATTENTION, "target_parameters": STACKS}


def prepare(base: Path, mesh: Mesh | None = None, *, images: bool = True, **sections: Any) -> PreparedModel:
    model = {"path": str(base), **sections.pop("model", {})}
    return prepare_model(sft_run(base.parent, model=model, **sections), mesh or Mesh(), "sha256:0", images=images)


def test_reading_says_that_it_gets_on(tmp_path: Path) -> None:
    """The watch over the ranks would take a long reading without a word for a rank that hangs."""
    base, heard = write_layout(tmp_path, "native").folder, []
    earlier = progress.listen(lambda place: heard.append(place.phase))
    try:
        prepare(base)
    finally:
        progress.listen(earlier)
    assert len(heard) > 20
    assert set(heard) == {"load"}


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


RANK_OF_FOUR = Mesh(rank=3, world_size=4, expert_parallel_size=2, expert_parallel_rank=1)
ZERO_3 = {"zero_stage": 3, "expert_parallel_size": 2}


def test_under_zero_3_a_rank_reads_its_shares(tmp_path: Path) -> None:
    """Of experts, which two ranks hold, a half; of the rest a quarter. What the adapter trains beside it is whole, but for copies."""
    base = write_layout(tmp_path, "hf").folder
    whole = dict(prepare(base).model.named_parameters())
    full = prepare(base, RANK_OF_FOUR, parallel=ZERO_3).model
    for name, parameter in full.named_parameters():
        share, values = share_of(parameter), whole[name].flatten()
        assert share is not None, name
        own = values.view(2, -1)[1] if parameter.ndim == 3 else values  # experts 4 to 7
        ranks, rank = (2, 1) if parameter.ndim == 3 else (4, 3)
        length = -(-own.numel() // ranks)
        assert torch.equal(share.view(share.start, share.stop), own[rank * length : (rank + 1) * length]), name
        assert parameter.requires_grad == whole[name].requires_grad
    adapted = prepare(base, RANK_OF_FOUR, parallel=ZERO_3, adapter=LORA | {"modules_to_save": ["model.norm"]}).model
    held = {name for name, parameter in adapted.named_parameters() if share_of(parameter) is None}
    assert held == {name for name, _ in adapted.named_parameters() if "lora" in name}
    assert all(bool(parameter.isfinite().all()) for name, parameter in adapted.named_parameters() if name in held)
    copied = share_of(adapted.get_parameter("model.norm.modules_to_save.default.weight"))
    assert copied is not None
    assert torch.equal(copied.values, share_of(adapted.get_parameter("model.norm.original_module.weight")).values)  # type: ignore[union-attr]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_read_the_base_see_it_whole(tmp_path: Path, start: str) -> None:
    base = write_layout(tmp_path, "hf").folder
    adapter = {"r": 2, "target_modules": ATTENTION, "init_lora_weights": start}
    model = prepare(base, RANK_OF_FOUR, parallel=ZERO_3, adapter=adapter).model
    assert all(share_of(parameter) is None for parameter in model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_dora_is_refused_under_zero_3_from_a_file_too(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "hf").folder
    section = AdapterSection(r=2, target_modules=ATTENTION, use_dora=True)
    model = load_model(base, dtype=torch.float32)
    attach(model, section)
    save_adapter(
        adapter_tensors(model), tmp_path / "adapter", section=section, config=model.config, base_path=base, base_fingerprint="sha256:0"
    )
    for adapter in (section.model_dump(exclude_unset=True), {"init_from": str(tmp_path / "adapter")}):
        with pytest.raises(ConfigError, match=r"adapter\.use_dora: DoRA needs whole base weights"):
            prepare(base, RANK_OF_FOUR, parallel=ZERO_3, adapter=adapter)
    assert prepare(base, adapter={"init_from": str(tmp_path / "adapter")}).adapter is not None


def test_an_adapter_from_a_file_goes_into_shares(tmp_path: Path) -> None:
    """The stored norm, not the base's, and of it this rank's part."""
    base = write_layout(tmp_path, "hf").folder
    section = AdapterSection(r=2, target_modules=ATTENTION, modules_to_save=["model.norm"])
    model = load_model(base, dtype=torch.float32)
    attach(model, section)
    tensors = adapter_tensors(model)
    tensors["model.norm.modules_to_save.default.weight"] = torch.arange(float(model.config.hidden_size))
    save_adapter(tensors, tmp_path / "adapter", section=section, config=model.config, base_path=base, base_fingerprint="sha256:0")
    found = prepare(base, RANK_OF_FOUR, parallel=ZERO_3, adapter={"init_from": str(tmp_path / "adapter")}).model
    share = share_of(found.get_parameter("model.norm.modules_to_save.default.weight"))
    assert share is not None
    size = model.config.hidden_size
    assert share.values.tolist() == list(range(3 * size // 4, size))
