"""Counts against the published ones and against the files; damaged folders are described, with every problem named."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import edit_json, rewrite, saved_tiny
from support.models import tiny_config

from ms4_train.model import TextConfig
from ms4_train.weights import base_fingerprint
from ms4_train.weights.reading.summary import active_parameters, inspect_checkpoint

MAKERS = {
    "hf": layouts.hf_folder,
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}
VISION = ("vision", "multi_modal")
TEXT_VALUES = sum(value.numel() for name, value in layouts.reference_pieces().items() if not name.startswith(VISION))
VISION_VALUES = sum(value.numel() for name, value in layouts.reference_pieces().items() if name.startswith(VISION))


def test_release_has_its_published_active_parameters():
    assert active_parameters(TextConfig()) == pytest.approx(6.633e9, rel=1e-3)
    dense = tiny_config(num_experts_per_tok=8)
    assert active_parameters(dense) == dense.num_parameters()


@pytest.mark.parametrize("layout", MAKERS)
def test_inspection_agrees_with_the_files(tmp_path, layout):
    stored = MAKERS[layout](tmp_path, shards=2, tokenizer=True)
    (tmp_path / "SHA256SUMS").write_text("")
    found = inspect_checkpoint(tmp_path)
    assert found.problems == []
    assert found.layout == layout
    assert found.families == (found.family,)
    assert found.tensors == len(stored)
    assert found.num_bytes == sum(tensor.nbytes for tensor in stored.values())
    whole = [value for value in (found.fingerprint, found.vision_fingerprint) if value is not None]
    assert "+".join(whole) == base_fingerprint(tmp_path)
    assert (found.has_config, found.has_tokenizer, found.has_sums) == (True, True, True)
    assert "SYSTEM_PROMPT.txt" in found.companions
    assert len(found.files) == 2
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}
    for name, count in found.types.items():
        mine = [tensor for tensor in stored.values() if tensor.dtype == kinds[name]]
        values = sum(tensor.numel() for tensor in mine) * (2 if name == "U8" else 1)
        assert (count.tensors, count.num_bytes, count.parameters) == (len(mine), sum(tensor.nbytes for tensor in mine), values)
    assert sum(count.tensors for count in found.types.values()) == len(stored)
    scales = sum(tensor.numel() for name, tensor in stored.items() if "scale" in name and not name.endswith(".weight_scale"))
    assert found.scales == scales
    assert found.config is not None
    assert found.softmax_scale == "plain"
    json.dumps(dataclasses.asdict(found))


def test_parameters_are_counted_by_part(tmp_path):
    layouts.nvfp4_folder(tmp_path / "m")
    found = inspect_checkpoint(tmp_path / "m")
    assert (found.text_parameters, found.vision_parameters) == (TEXT_VALUES, VISION_VALUES)
    assert found.parameters == TEXT_VALUES + VISION_VALUES
    assert found.active_parameters < found.text_parameters
    saved_tiny(tmp_path / "text")
    assert inspect_checkpoint(tmp_path / "text").vision_parameters == 0


def test_both_families(tmp_path):
    layouts.both_folder(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert (found.family, found.layout, found.families) == ("native", "native-fp8", ("native", "hf"))
    other = inspect_checkpoint(tmp_path, family="hf")
    assert (other.layout, other.problems) == ("hf-fp8", [])


def test_every_problem_is_named_and_the_rest_described(tmp_path):
    stored = layouts.native_fp8_folder(tmp_path)

    def damage(tensors):
        del tensors["norm.weight"]
        tensors["layers.0.attention.wq.weight"] = torch.ones(3)
        tensors["layers.1.gate.weight"] = tensors["layers.1.gate.weight"][:5]
        tensors["layers.0.experts.3.w1.qscale_weight"].fill_(float("nan"))
        tensors["layers.1.experts.3.w1.qscale_act"].fill_(-1)

    rewrite(tmp_path, damage)
    found = inspect_checkpoint(tmp_path)
    for name in (
        *("norm.weight", "layers.0.attention.wq.weight", "layers.1.gate.weight"),
        *("layers.0.experts.3.w1.qscale_weight", "layers.1.experts.3.w1.qscale_act"),
    ):
        assert sum(f": {name}: " in problem for problem in found.problems) == 1, (name, found.problems)
    assert len(found.problems) == 5
    assert found.layout == "native-fp8"
    assert found.tensors == len(stored)
    assert found.fingerprint is None


def test_many_problems_of_a_kind_are_counted(tmp_path):
    layouts.native_folder(tmp_path, shards=2)
    first, _ = sorted(tmp_path.glob("*.safetensors"))
    lost = len(load_file(first))
    first.write_bytes(first.read_bytes()[:-10])
    found = inspect_checkpoint(tmp_path)
    assert "cut off" in found.problems[0]
    assert found.problems[-1] == f"{lost - 20:,} more tensors are missing."
    assert len(found.problems) == 22


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: (folder / "params.json").unlink(), "no such file"),
        (lambda folder: (folder / "params.json").write_text("{"), "invalid JSON"),
        (lambda folder: edit_json(folder / "params.json", lambda content: content.pop("quantization")), "declares no quantisation"),
        (lambda folder: edit_json(folder / "params.json", lambda content: content.pop("moe")), "moe"),
        (lambda folder: (folder / "consolidated.safetensors").write_bytes(b"PK\x03\x04 and so on"), "pickle"),
        (lambda folder: (folder / "consolidated.safetensors").unlink(), "none of consolidated.safetensors"),
    ],
)
def test_damaged_folders_do_not_stop_it(tmp_path, damage, word):
    layouts.native_fp8_folder(tmp_path)
    damage(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert any(word in problem for problem in found.problems), found.problems
    json.dumps(dataclasses.asdict(found))


def test_a_folder_of_something_else(tmp_path):
    found = inspect_checkpoint(tmp_path / "nowhere")
    assert len(found.problems) == 1
    assert "no such folder" in found.problems[0]
