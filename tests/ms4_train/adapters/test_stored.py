"""What is read from a folder, and the faults that are refused before anything is attached."""

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import edit_json, rewrite
from support.models import tiny_config, tiny_model

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.adapters.stack_layout import StackLayout
from ms4_train.adapters.stored import check_sum, open_adapter, read_adapter
from ms4_train.errors import AdapterError, MS4Error
from ms4_train.weights.reading.loading import empty_model

SQUARE_B = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight"
O_PROJ = "base_model.model.model.layers.1.self_attn.o_proj"


@pytest.fixture
def folder(tmp_path):
    settings = section(preset="attention+experts")
    model = adapted(settings)
    save_adapter(adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="b", base_fingerprint="sha256:0")
    return tmp_path / "a"


def read(folder, model=None, fingerprint="sha256:0"):
    found = open_adapter(folder)
    read = read_adapter(model or tiny_model(), found, base_fingerprint=fingerprint)
    check_sum(found)
    return read


def forget(folder):
    (folder / "ms4_adapter.json").unlink()


def test_reads_without_attaching_or_weights(folder):
    model = empty_model(tiny_config())
    found = read(folder, model)
    assert found.layout is StackLayout.NEW
    assert {name: tuple(value.shape) for name, value in found.tensors.items()} == {
        name: tuple(value.shape) for name, value in adapter_tensors(adapted(found.section)).items()
    }
    assert not adapter_parameters(model)


def set_to(name, value):
    def change(tensors):
        tensors[name][1, 1] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [SQUARE_B, f"{O_PROJ}.lora_A.weight"])
def test_values_that_are_not_finite(folder, name, value):
    forget(folder)
    rewrite(folder, set_to(name, value))
    with pytest.raises(AdapterError, match="1 values that are NaN or infinite") as caught:
        read(folder)
    assert caught.value.key == name
    assert caught.value.file == str(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("side", ["A", "B"])
def test_transposed_linear(folder, side):
    forget(folder)
    name = f"{O_PROJ}.lora_{side}.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(AdapterError, match="rank" if side == "A" else "transposed"):
        read(folder)


def test_square_tensors_that_were_transposed_or_exchanged_are_found_by_the_sum(folder):
    """o_proj is square here and in the release, so with A and B exchanged every shape is right. Negative control: without the record."""

    def exchange(tensors):
        a, b = f"{O_PROJ}.lora_A.weight", f"{O_PROJ}.lora_B.weight"
        tensors[a], tensors[b] = tensors[b].T.contiguous(), tensors[a].T.contiguous()

    read(folder)
    rewrite(folder, exchange)
    with pytest.raises(AdapterError, match="SHA-256 differs") as caught:
        read(folder)
    assert caught.value.fix is not None
    assert "remove weights_sha256" in caught.value.fix
    edit_json(folder / "ms4_adapter.json", lambda record: record.pop("weights_sha256"))
    read(folder)


def test_loading_compares_the_sum_too(folder):
    rewrite(folder, set_to(SQUARE_B, 1.0))
    model = tiny_model()
    with pytest.raises(AdapterError, match="SHA-256 differs"):
        load_adapter(model, folder, base_fingerprint="sha256:0")
    assert not adapter_parameters(model)


def test_other_base(folder):
    with pytest.raises(AdapterError, match="another model"):
        read(folder, fingerprint="sha256:1")
    read(folder, fingerprint=None)


@pytest.mark.parametrize("cut", [10, 100, 100_000])
def test_file_that_is_cut_off(folder, cut):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(MS4Error) as caught:
        read(folder)
    assert caught.value.file == str(file)


def test_half_precision_is_read(folder):
    forget(folder)
    rewrite(folder, lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}))
    assert {value.dtype for value in read(folder).tensors.values()} == {torch.float16}
