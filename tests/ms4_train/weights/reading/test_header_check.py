"""Each kind of disagreement is counted whole and named singly; messages of single faults are in ``test_checkpoint_faults.py``."""

from pathlib import Path

import pytest

from ms4_train.model import TextConfig
from ms4_train.untrusted import TensorInfo
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable
from ms4_train.weights.reading.header_check import HeaderCheck
from ms4_train.weights.reading.stored_files import StoredTensor

CONFIG = ModelConfig(TextConfig(num_hidden_layers=1, n_routed_experts=4))


def entry(name, dtype, shape):
    return StoredTensor(Path("f.safetensors"), name, TensorInfo(dtype, tuple(shape), 0, 0))


def exact(layout):
    table = LayoutTable(layout, CONFIG)
    return table, {name: entry(name, spec.dtype, spec.shape) for name, spec in table.tensors().items()}


def mismatches(layout, table, stored):
    family = "hf" if layout.is_hf else "native"
    return list(HeaderCheck.compare(Path("m"), family, table, stored).mismatches())


@pytest.mark.parametrize("layout", Layout)
def test_the_table_itself_passes(layout):
    assert mismatches(layout, *exact(layout)) == []


@pytest.mark.parametrize("layout", Layout)
def test_every_tensor_is_missed_by_name(layout):
    table, stored = exact(layout)
    for name in stored:
        rest = {other: item for other, item in stored.items() if other != name}
        (found,) = mismatches(layout, table, rest)
        assert (found.kind, found.name, found.error.key) == ("missing", name, name)


@pytest.mark.parametrize("layout", Layout)
def test_every_shape_and_type_is_compared(layout):
    table, stored = exact(layout)
    for name, item in stored.items():
        (found,) = mismatches(layout, table, stored | {name: entry(name, item.info.dtype, (*item.info.shape, 3))})
        assert (found.kind, found.name) == ("misshapen", name)
        (found,) = mismatches(layout, table, stored | {name: entry(name, "I64", item.info.shape)})
        assert (found.kind, found.name) == ("mistyped", name)


def test_all_are_listed_and_the_first_counts_the_rest():
    table, stored = exact(Layout.NATIVE)
    for name in [name for name in stored if ".experts.2." in name]:
        stored[f"x.{name}"] = stored.pop(name)
    found = mismatches(Layout.NATIVE, table, stored)
    assert [mismatch.kind for mismatch in found] == ["missing"] * 3 + ["unexpected"] * 3
    assert "and 2 more" in str(found[0].error)
    assert "12 expert matrices of layer 0, 3 are missing" in str(found[0].error)
    assert "more" not in str(found[1].error)
    assert "and 2 more" in str(found[3].error)


def test_activation_scales_are_all_there_or_none():
    table, stored = exact(Layout.HF_FP8)
    dynamic = {name: item for name, item in stored.items() if "activation" not in name}
    assert mismatches(Layout.HF_FP8, table, dynamic) == []
    del stored["model.layers.0.self_attn.o_proj.activation_scale"]
    (found,) = mismatches(Layout.HF_FP8, table, stored)
    assert found.name == "model.layers.0.self_attn.o_proj.activation_scale"


def test_the_names_of_other_layouts_are_made_once(monkeypatch):
    """A damaged checkpoint of the large model has thousands of unexpected names, and each layout takes part of a second."""
    table, stored = exact(Layout.NATIVE)
    other = LayoutTable(Layout.HF, CONFIG)
    stored |= {name: entry(name, spec.dtype, spec.shape) for name, spec in other.tensors().items()}
    made = []

    def layout_table(*arguments):
        made.append(arguments)
        return LayoutTable(*arguments)

    monkeypatch.setattr("ms4_train.weights.reading.header_check.LayoutTable", layout_table)
    messages = [str(mismatch.error) for mismatch in mismatches(Layout.NATIVE, table, stored)]
    assert len(messages) == len(other.tensors())
    assert all("stored twice" in message for message in messages)
    assert len(made) == 3
