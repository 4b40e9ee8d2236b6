"""Which types and scales a target gets, and where the scales come from."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts

from ms4_train.errors import WeightsError
from ms4_train.weights.convert import convert
from ms4_train.weights.convert.target import make_target
from ms4_train.weights.layouts.tables import HfNames, Layout
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.scales_file import SCALES_FILE, scales_of


def made(folder, to, *, scales=None, weight_scales="kept", dtype=None):
    return make_target(open_checkpoint(folder), to, scales=scales, weight_scales=weight_scales, dtype=dtype)


def dtypes(target, ending):
    return {spec.dtype for name, spec in target.specs.items() if name.endswith(ending)}


def test_types_follow_the_source(tmp_path):
    layouts.native_fp8_folder(tmp_path / "fp8", scale_dtype=torch.float32)
    assert dtypes(made(tmp_path / "fp8", Layout.HF), "") == {"BF16"}
    assert dtypes(made(tmp_path / "fp8", Layout.HF, dtype="float32"), "") == {"F32"}
    target = made(tmp_path / "fp8", Layout.HF_FP8)
    assert dtypes(target, "scale_inv") == dtypes(target, "activation_scale") == {"F32"}
    fitted = made(tmp_path / "fp8", Layout.NATIVE_FP8, weight_scales="fitted")
    assert (dtypes(fitted, "qscale_weight"), dtypes(fitted, "qscale_act")) == ({"BF16"}, {"F32"})
    layouts.hf_folder(tmp_path / "wide", dtype=torch.float32)
    assert dtypes(made(tmp_path / "wide", Layout.NATIVE), "") == {"F32"}
    assert made(tmp_path / "wide", Layout.NATIVE).table.dtype == "F32"


def test_a_stack_of_different_types_takes_the_wider_one(tmp_path):
    pieces = layouts.reference_pieces()
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    layouts.native_folder(tmp_path / "native", pieces=pieces | {name: pieces[name].float()})
    target = made(tmp_path / "native", Layout.HF)
    assert dtypes(target, "layers.1.mlp.experts.gate_up_proj") == {"F32"}
    assert dtypes(target, "layers.0.mlp.experts.gate_up_proj") == {"BF16"}


def test_names_of_multimodal_and_text_files(tmp_path):
    layouts.native_folder(tmp_path / "both")
    layouts.native_folder(tmp_path / "text", vision=False)
    assert made(tmp_path / "both", Layout.HF).table.hf_names is HfNames.DISK
    assert made(tmp_path / "text", Layout.HF).table.hf_names is HfNames.TEXT


def test_scales_come_from_the_source_then_what_is_given_then_what_lies_beside(tmp_path):
    layouts.native_fp8_folder(tmp_path / "fp8")
    layouts.native_fp8_folder(tmp_path / "other", seed=5)
    convert(tmp_path / "fp8", tmp_path / "plain", to="hf", progress=None)
    name = "model.layers.0.self_attn.o_proj.weight"
    own, other = (scales_of(open_checkpoint(tmp_path / folder))[name].weight for folder in ("fp8", "other"))
    assert own != other
    assert made(tmp_path / "fp8", Layout.HF_FP8).scales[name].weight == own
    assert made(tmp_path / "plain", Layout.NATIVE_FP8).scales[name].weight == own
    assert made(tmp_path / "plain", Layout.NATIVE_FP8, scales=tmp_path / "other").scales[name].weight == other
    (tmp_path / "plain" / SCALES_FILE).unlink()
    with pytest.raises(WeightsError, match="no FP8 scales"):
        made(tmp_path / "plain", Layout.NATIVE_FP8)
    assert made(tmp_path / "plain", Layout.HF).sidecar == {}


def test_dynamic_activations_stay_dynamic(tmp_path):
    layouts.native_fp8_folder(tmp_path / "fp8")
    file = tmp_path / "fp8" / "consolidated.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith("qscale_act")}, file)
    target = made(tmp_path / "fp8", Layout.HF_FP8)
    assert not target.has_activation_scales
    assert dtypes(target, "activation_scale") == set()
    assert made(tmp_path / "fp8", Layout.HF).sidecar["model.layers.0.self_attn.o_proj.weight"].activation is None
    convert(tmp_path / "fp8", tmp_path / "plain", to="hf", progress=None)
    convert(tmp_path / "plain", tmp_path / "again", to="native-fp8", progress=None)
    assert set(load_file(tmp_path / "again" / "consolidated.safetensors")) == set(load_file(file))
