"""What decided the softmax scale, in folders of every kind; agrees with the scale that is then used."""

import pytest
from support.checkpoints import edit_json, saved_tiny
from support.layouts import both_folder, hf_folder, native_folder
from support.models import tiny_config

from ms4_train.weights.layouts.model_config import read_model_config
from ms4_train.weights.reading.softmax_source import softmax_source


def test_native_files_decide_by_their_key(tmp_path):
    native_folder(tmp_path, apply_scale=True)
    assert softmax_source(tmp_path, "native") == "yarn.apply_scale of params.json"
    assert read_model_config(tmp_path).text.softmax_scale == "mscale"
    edit_json(tmp_path / "params.json", lambda content: content["yarn"].pop("apply_scale"))
    assert softmax_source(tmp_path, "native").startswith("no key of params.json; plain")
    assert read_model_config(tmp_path).text.softmax_scale == "plain"


def test_hugging_face_files_alone_say_nothing_unless_we_wrote_them(tmp_path):
    hf_folder(tmp_path / "public")
    assert softmax_source(tmp_path / "public", "hf").startswith("no key of config.json; plain")
    saved_tiny(tmp_path / "ours", tiny_config(softmax_scale="mscale"))
    assert softmax_source(tmp_path / "ours", "hf") == "softmax_scale of config.json"


def test_beside_native_files_those_decide(tmp_path):
    both_folder(tmp_path)
    assert softmax_source(tmp_path, "hf") == softmax_source(tmp_path, "native") == "yarn.apply_scale of params.json"


@pytest.mark.parametrize("text", ["{", "[]", '{"yarn": 3}'])
def test_damaged_files_are_no_matter_here(tmp_path, text):
    (tmp_path / "params.json").write_text(text)
    assert softmax_source(tmp_path, "native").startswith("no key")
