"""Folders in another form hold the same adapter; where the base is not recorded it must be named."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.adapted import adapted, logits_of, section
from support.checkpoints import relative_error, saved_tiny
from support.models import tiny_model

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.export import export_adapter
from ms4_train.errors import AdapterError, StorageError, WeightsError
from ms4_train.weights import base_fingerprint, load_model


def write(folder, *, vision=False, base="base", fingerprint="sha256:0", **values):
    settings = section(**values)
    model = adapted(settings, vision=vision)
    options = {"vision": getattr(model, "vision_config", None), "base_path": base, "base_fingerprint": fingerprint}
    save_adapter(adapter_tensors(model), folder, section=settings, config=model.config, **options)
    return model


@pytest.mark.parametrize("vision", [False, True])
def test_peft_form_is_the_same_file(tmp_path, vision):
    write(tmp_path / "a", vision=vision, preset="all" if vision else "attention+experts")
    export_adapter(tmp_path / "a", tmp_path / "b", "peft")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "a" / "ms4_adapter.json").read_text()) == json.loads((tmp_path / "b" / "ms4_adapter.json").read_text())


def test_there_and_back(tmp_path):
    model = write(tmp_path / "a", preset="attention+experts")
    done = export_adapter(tmp_path / "a", tmp_path / "v", "vllm")
    assert done.vllm is not None
    assert (done.vllm.fused, done.vllm.rank) == (2, 8)
    assert done.skipped_in_decode
    export_adapter(tmp_path / "v", tmp_path / "p", "peft")
    again = tiny_model()
    section = load_adapter(again, tmp_path / "p", base_fingerprint="sha256:0")
    assert "q_a_proj" in section.target_modules
    assert relative_error(logits_of(again), logits_of(model)) < 1e-5
    assert adapter_tensors(again).keys() == adapter_tensors(model).keys()


def test_adapter_without_a_record_needs_its_base(tmp_path):
    saved_tiny(tmp_path / "base")
    model = write(tmp_path / "a", preset="attention")
    (tmp_path / "a" / "ms4_adapter.json").unlink()
    with pytest.raises(AdapterError, match="no ms4_adapter") as caught:
        export_adapter(tmp_path / "a", tmp_path / "b", "vllm")
    assert caught.value.fix is not None
    assert "--base" in caught.value.fix
    export_adapter(tmp_path / "a", tmp_path / "b", "vllm", base_folder=tmp_path / "base")
    base = load_model(tmp_path / "base", dtype=torch.float32)
    load_adapter(base, tmp_path / "b", base_fingerprint=base_fingerprint(tmp_path / "base"))
    assert relative_error(logits_of(base), logits_of(model)) < 1e-5


def test_another_base_is_refused(tmp_path):
    saved_tiny(tmp_path / "base", seed=1)
    write(tmp_path / "a", preset="attention")
    with pytest.raises(AdapterError, match="another model"):
        export_adapter(tmp_path / "a", tmp_path / "b", "peft", base_folder=tmp_path / "base")


def test_folder_with_files_is_not_replaced(tmp_path):
    write(tmp_path / "a", preset="attention")
    write(tmp_path / "b", preset="attention")
    with pytest.raises(StorageError):
        export_adapter(tmp_path / "a", tmp_path / "b", "vllm")


@pytest.mark.parametrize("damage", [{"base_vision": {"depth": 3}}, {"base": 4}, {"base": {"hidden_size": "x"}}])
def test_damaged_record(tmp_path, damage):
    write(tmp_path / "a", preset="attention")
    file = tmp_path / "a" / "ms4_adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises((AdapterError, WeightsError)):
        export_adapter(tmp_path / "a", tmp_path / "b", "peft")
