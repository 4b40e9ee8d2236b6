"""Configurations, indices, companions and kept scales of converted folders, and what stays behind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts
from transformers import AutoConfig

from ms4_train.errors import WeightsError
from ms4_train.weights.convert import convert
from ms4_train.weights.layouts.detect import CONFIG_FILES
from ms4_train.weights.layouts.model_config import read_model_config


def go(source, out, to, **options):
    return convert(source, out, to=to, progress=None, **options)


def read(path):
    return json.loads(path.read_text())


def test_hf_files_say_plain_in_transformers_words(tmp_path):
    layouts.native_folder(tmp_path / "native")
    go(tmp_path / "native", tmp_path / "hf", "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.architectures == ["Mistral3ForConditionalGeneration"]
    rope = config.text_config.rope_parameters
    assert (rope["mscale_all_dim"], rope["attention_factor"]) == (0.0, 1.0)  # spec section 0.1
    assert read(tmp_path / "hf" / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
    assert "quantization_config" not in read(tmp_path / "hf" / "config.json")


@pytest.mark.parametrize("apply_scale", [False, True])
def test_the_softmax_scale_survives_the_way_through_both_families(tmp_path, apply_scale):
    layouts.native_folder(tmp_path / "native", apply_scale=apply_scale)
    go(tmp_path / "native", tmp_path / "hf", "hf")
    go(tmp_path / "hf", tmp_path / "back", "native")
    word = "mscale" if apply_scale else "plain"
    for folder in ("native", "hf", "back"):
        assert read_model_config(tmp_path / folder).text.softmax_scale == word
    before, after = read(tmp_path / "native" / "params.json"), read(tmp_path / "back" / "params.json")
    assert before == after


def test_the_softmax_scale_of_a_release_can_be_chosen(tmp_path):
    """Its configuration for Hugging Face leaves it open; see spec section 0.1."""
    layouts.hf_folder(tmp_path / "hf")
    for choice, applied in (("auto", False), ("mscale", True)):
        go(tmp_path / "hf", tmp_path / choice, "native", softmax_scale=choice)
        assert read(tmp_path / choice / "params.json")["yarn"]["apply_scale"] is applied


def test_fp8_is_declared(tmp_path):
    layouts.native_fp8_folder(tmp_path / "native")
    go(tmp_path / "native", tmp_path / "hf", "hf-fp8")
    made = read(tmp_path / "hf" / "config.json")["quantization_config"]
    layouts.hf_fp8_folder(tmp_path / "factory")
    assert made == read(tmp_path / "factory" / "config.json")["quantization_config"]
    go(tmp_path / "hf", tmp_path / "back", "native-fp8")
    assert read(tmp_path / "back" / "params.json")["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    file = tmp_path / "native" / "consolidated.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith("qscale_act")}, file)
    go(tmp_path / "native", tmp_path / "dynamic", "hf-fp8")
    assert read(tmp_path / "dynamic" / "config.json")["quantization_config"]["activation_scheme"] == "dynamic"


def test_companions_go_along_and_the_rest_is_named(tmp_path):
    layouts.hf_folder(tmp_path / "hf", tokenizer=True)
    (tmp_path / "hf" / "generation_config.json").write_text('{"temperature": 0.7}')
    (tmp_path / "hf" / "LICENSE").write_text("Apache")
    (tmp_path / "hf" / "README.md").write_text("card")
    (tmp_path / "hf" / "modeling.py").write_text("import os")
    report = go(tmp_path / "hf", tmp_path / "native", "native")
    assert report.companions == ("LICENSE", "SYSTEM_PROMPT.txt", "generation_config.json", "tekken.json")
    assert report.left_behind == ("README.md", "modeling.py")
    for name in report.companions:
        assert (tmp_path / "native" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    report = go(tmp_path / "native", tmp_path / "back", "hf")
    assert read(tmp_path / "back" / "generation_config.json") == {"temperature": 0.7}
    assert report.left_behind == ()


def test_a_folder_of_both_families_reads_the_native_one_and_names_the_other(tmp_path):
    _, native = layouts.both_folder(tmp_path / "both")
    report = go(tmp_path / "both", tmp_path / "plain", "native")
    assert report.left_behind == ("model.safetensors",)
    meant = layouts.native_tensors(layouts.fp8_reference_pieces(layouts.reference_pieces()))
    found = load_file(tmp_path / "plain" / "consolidated.safetensors")
    assert all(torch.equal(found[name], meant[name]) for name in meant)
    report = go(tmp_path / "both", tmp_path / "from hf", "hf", family="hf")
    assert report.source_layout == "hf-fp8"
    assert native.keys() != found.keys()


def test_a_configuration_that_native_cannot_say_is_refused_first(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    config = read(tmp_path / "hf" / CONFIG_FILES["hf"])
    config["text_config"]["norm_topk_prob"] = False
    (tmp_path / "hf" / CONFIG_FILES["hf"]).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="norm_topk_prob"):
        go(tmp_path / "hf", tmp_path / "native", "native")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
