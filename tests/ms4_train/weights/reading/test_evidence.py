"""Encoding, prefix and vision are read off names and types; quantisations that are not read are named."""

from pathlib import Path

import pytest

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.untrusted import TensorInfo
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable
from ms4_train.weights.reading.evidence import is_extra, is_vision, weigh_evidence
from ms4_train.weights.reading.stored_files import StoredTensor

TINY = ModelConfig(TextConfig(num_hidden_layers=1, n_routed_experts=4), VisionConfig(num_hidden_layers=1))


def stored(entries):
    return {name: StoredTensor(Path("f.safetensors"), name, TensorInfo(dtype, tuple(shape), 0, 0)) for name, dtype, shape in entries}


def of_table(layout, names=HfNames.DISK, config=TINY):
    return [(name, spec.dtype, spec.shape) for name, spec in LayoutTable(layout, config, names).tensors().items()]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("names", HfNames)
def test_tables_are_recognised(layout, names):
    config = ModelConfig(TINY.text) if names is HfNames.TEXT else TINY
    found = weigh_evidence(stored(of_table(layout, names, config)), "hf" if layout.is_hf else "native")
    assert found.layout("hf" if layout.is_hf else "native") is layout
    assert found.encoding == layout.encoding
    if layout.is_hf:
        assert found.hf_names is names
    assert (found.witness is None) == (layout.encoding == "plain")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "word"),
    [
        ("model.layers.0.self_attn.o_proj.weight.absmax", "F32", [4], "bitsandbytes"),
        ("model.layers.0.self_attn.o_proj.SCB", "F32", [4], "int8"),
        ("model.layers.0.self_attn.o_proj.qweight", "I32", [4], "GPTQ"),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", [4], "MXFP4"),
        ("layers.0.experts.0.w1.weight_scale_2", "F32", [], "ModelOpt"),
        ("model.layers.0.self_attn.o_proj.weight_scale_inv", "F32", [32, 32], "blocks"),
        ("model.layers.0.mlp.experts.down_proj_scale_inv", "F32", [4, 32, 16], "blocks"),
        ("model.layers.0.self_attn.o_proj.weight_scale", "F32", [1], "without FP4"),
        ("model.layers.0.self_attn.o_proj.weight", "F8_E5M2", [4, 4], "F8_E5M2"),
        ("model.layers.0.self_attn.o_proj.weight", "I8", [4, 4], "I8"),
        ("eagle_linear.weight", "F8_E4M3", [4, 4], "EAGLE"),
    ],
)
def test_what_is_not_read_is_named(name, dtype, shape, word):
    with pytest.raises(WeightsError, match=word) as caught:
        weigh_evidence(stored([*of_table(Layout.HF), (name, dtype, shape)]), "hf")
    assert caught.value.key == name
    assert caught.value.file == "f.safetensors"


def test_nvfp4_under_hugging_face_names_is_refused():
    with pytest.raises(WeightsError, match="NVFP4 under"):
        weigh_evidence(stored([("model.layers.0.mlp.experts.0.gate_proj.weight_packed", "U8", [4, 4])]), "hf")


def test_extras_and_vision():
    assert is_extra("vision_encoder.transformer.layers.3.attention.k_fake_quantizer.qscale_act")
    assert not any(is_extra(name) for layout in Layout for name, _, _ in of_table(layout))
    table = LayoutTable(Layout.NATIVE, TINY)
    for piece in table.pieces().values():
        assert is_vision(table.place(piece).values) == (piece.part == "vision")
