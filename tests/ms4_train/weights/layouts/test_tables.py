"""The tables add up to what is known of the public repositories, and every stored tensor is covered by its pieces exactly once."""

import math

import pytest
import torch
from support.models import tiny_config
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.hf_config import to_hf_model_config
from ms4_train.weights.layouts.pieces import ModelConfig, Part
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable

RELEASE = ModelConfig(TextConfig(), VisionConfig())
TINY = ModelConfig(tiny_config(), VisionConfig(32, 48, 2, 2, 16))
BYTES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}


def total(specs, kind=None):
    chosen = [spec for spec in specs.values() if kind is None or spec.kind == kind]
    return len(chosen), sum(math.prod(spec.shape) for spec in chosen), sum(math.prod(spec.shape) * BYTES[spec.dtype] for spec in chosen)


def test_hugging_face_release():
    specs = LayoutTable(Layout.HF, RELEASE, HfNames.DISK).tensors()
    assert total(specs)[:2] == (765, 119_401_298_944)  # spec section 1.3


def test_fp8_release_on_hugging_face():
    specs = LayoutTable(Layout.HF_FP8, RELEASE, HfNames.DISK).tensors()
    # Spec 1.3: 36 x (5 attention + 3 shared, two scales each, and 4 per expert) scalars; with them the hub counts 119,401,317,952.
    assert total(specs, "scalar")[1] == 36 * (5 * 2 + 3 * 2 + 4 * 128) == 19_008
    assert total(specs)[1] == 119_401_317_952
    prefix = "language_model.model.layers.0.mlp.experts.gate_up_proj"
    assert (specs[f"{prefix}_scale_inv"].shape, specs[f"{prefix}_activation_scale"].shape) == ((128, 1, 1), (128,))  # spec section 3.3


def test_nvfp4_release():
    specs = LayoutTable(Layout.NVFP4, RELEASE).tensors()
    count, _, num_bytes = total(specs)
    assert (count, num_bytes) == (56_313, 70_801_959_560)  # the real headers, spec section 3.4
    assert total(specs, "fp4")[0] == 13_932


def test_native_release():
    plain = LayoutTable(Layout.NATIVE, RELEASE).tensors()
    assert total(plain)[1] == 119_401_298_944
    assert plain["layers.3.experts.127.w2.weight"].shape == (4096, 2048)
    fp8 = LayoutTable(Layout.NATIVE_FP8, RELEASE).tensors()
    assert total(fp8, "fp8")[0] == 36 * (5 + 3 + 3 * 128)
    for name in ("tok_embeddings.weight", "output.weight", "layers.0.gate.weight", "vision_language_adapter.w_in.weight"):
        assert fp8[name].kind == "values"


@pytest.mark.parametrize("names", list(HfNames))
def test_hugging_face_names_are_transformers(names):
    config = TINY if names is not HfNames.TEXT else ModelConfig(TINY.text)
    found = {name: spec.shape for name, spec in LayoutTable(Layout.HF, config, names).tensors().items()}
    if names is not HfNames.TRANSFORMERS:
        assert len(found) == len(LayoutTable(Layout.HF, config, HfNames.TRANSFORMERS).tensors())
        return
    with torch.device("meta"):
        theirs = Mistral3ForConditionalGeneration(Mistral3Config(**to_hf_model_config(config, dtype=torch.bfloat16)))
    assert found == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("layout", list(Layout))
def test_pieces_cover_every_value_exactly_once(layout):
    table = LayoutTable(layout, TINY, HfNames.DISK)
    specs, places = table.tensors(), {name: table.place(piece) for name, piece in table.pieces().items()}
    covered = {name: torch.zeros(spec.shape, dtype=torch.int8) for name, spec in specs.items() if spec.kind in ("values", "fp8", "fp4")}
    scalars: set[str] = set()
    for name, place in places.items():
        area = covered[place.values]
        if place.expert is not None:
            area = area[place.expert]
        area = area if place.rows is None else area[place.rows[0] : place.rows[1]]
        assert area.shape[0] == table.pieces()[name].shape[0]
        area += 1
        scalars |= {scale for scale in (place.weight_scale, place.activation_scale, place.block_scale) if scale}
    assert all(bool((area == 1).all()) for area in covered.values())
    assert covered.keys() | scalars == specs.keys()


def test_only_vision_queries_and_keys_are_permuted():
    table = LayoutTable(Layout.NATIVE, TINY)
    permuted = [piece.name for piece in table.pieces().values() if table.place(piece).is_permuted]
    assert permuted == [f"vision_tower.transformer.layers.{n}.attention.{x}_proj.weight" for n in range(2) for x in "qk"]
    assert not any(LayoutTable(Layout.HF, TINY).place(piece).is_permuted for piece in table.pieces().values())
    assert all(piece.part is Part.VISION for piece in table.pieces().values() if piece.name in permuted)
