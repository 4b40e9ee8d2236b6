"""The screen and the JSON of a checkpoint say the same, for every layout, whole and damaged."""

import io
import json

import pytest
import torch
from rich.console import Console
from support.checkpoints import rewrite, saved_tiny
from support.layouts import both_folder, hf_folder, hf_fp8_folder, native_folder, native_fp8_folder, nvfp4_folder

from ms4_train.cli.inspection import inspect_folder, inspection_json, print_inspection, short_inspection
from ms4_train.errors import WeightsError


def screen(found):
    stream = io.StringIO()
    print_inspection(found, "Model", Console(file=stream, width=160))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (hf_folder, "hf: Hugging Face, not quantised; names as in the public repository"),
        (native_folder, "native: Mistral-native, not quantised"),
        (hf_fp8_folder, "hf-fp8: Hugging Face, FP8"),
        (native_fp8_folder, "native-fp8: Mistral-native, FP8"),
        (nvfp4_folder, "nvfp4: Mistral-native names, NVFP4"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_layout_in_words_numbers_and_json(tmp_path, make, words):
    stored = make(tmp_path, tokenizer=True)
    found = inspect_folder(tmp_path)
    shown = screen(found)
    assert words in shown
    assert f"{sum(tensor.nbytes for tensor in stored.values()):,} bytes" in shown
    assert f"{len(stored):,} tensors" in shown
    for text in (
        "2 of width 64",
        "8 of width 32, 2 per token + 1 shared",
        "2 layers of width 32",
        "2 x 2 patches",
        "tekken.json",
        "SYSTEM_PROMPT.txt",
    ):
        assert text in shown, text
    assert "there is no SHA256SUMS" in shown
    assert "nothing is missing or wrong" in shown
    for dtype in {str(tensor.dtype) for tensor in stored.values()}:
        name = {"torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3", "torch.uint8": "U8", "torch.float32": "F32"}[dtype]
        assert f"│ {name} " in shown
    content = json.loads(inspection_json(found))
    assert content["problems"] == []
    assert content["layout"] == words.partition(":")[0]
    assert content["config"]["text"]["hidden_size"] == 64
    assert content["parameters"] == content["text_parameters"] + content["vision_parameters"]
    assert content["softmax_scale_decided_by"]
    assert content["fingerprint"] in "".join(shown.split())
    assert content["vision_fingerprint"] in "".join(shown.split())
    assert f"{found.parameters:,} parameters" in short_inspection(found)


def test_two_families_side_by_side_are_named(tmp_path):
    both_folder(tmp_path)
    shown = screen(inspect_folder(tmp_path))
    assert "native-fp8" in shown
    assert "--family hf describes them" in shown
    assert "hf-fp8" in screen(inspect_folder(tmp_path, "hf"))


def test_problems_are_all_there(tmp_path):
    saved_tiny(tmp_path)

    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["lm_head.weight"] = torch.zeros(3, 3)
        tensors["odd.weight"] = torch.zeros(1)

    rewrite(tmp_path, damage)
    found = inspect_folder(tmp_path)
    shown = screen(found)
    assert len(found.problems) >= 3
    for name in ("model.norm.weight", "lm_head.weight", "odd.weight"):
        assert any(line.startswith("problem: ") and name in line for line in shown.splitlines())
    assert "nothing is missing" not in shown
    assert "none, because of the problems" in shown
    assert json.loads(inspection_json(found))["problems"] == found.problems


def test_a_configuration_that_cannot_be_read_leaves_the_rest(tmp_path):
    native_folder(tmp_path)
    (tmp_path / "params.json").write_text("{")
    found = inspect_folder(tmp_path)
    assert found.problems
    assert "tensors" in screen(found)
    json.loads(inspection_json(found))


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        inspect_folder(tmp_path / "absent")
