"""Which file a folder's configuration is read from, and who decides the softmax scale."""

import json

import pytest

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.model_config import read_config, read_model_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout


def both(folder, *, apply_scale=False):
    """A folder as the public repository is: the two families' configurations, with different depths so that one can tell them apart."""
    params = to_params(ModelConfig(TextConfig(num_hidden_layers=7), VisionConfig()), Layout.NATIVE)
    params["yarn"]["apply_scale"] = apply_scale
    (folder / "params.json").write_text(json.dumps(params))
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192, "llama_4_scaling_beta": 0.1}
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    text = {"model_type": "mistral4", "num_hidden_layers": 9, "rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": text, "vision_config": {}}))
    return folder


def test_the_family_of_the_weights_decides(tmp_path):
    folder = both(tmp_path)
    assert read_config(folder).num_hidden_layers == 9  # no weights at all: as Hugging Face's
    (folder / "consolidated.safetensors").touch()
    assert read_config(folder).num_hidden_layers == 7
    (folder / "model.safetensors").touch()
    assert read_config(folder).num_hidden_layers == 7
    assert read_model_config(folder, family="hf").text.num_hidden_layers == 9
    assert read_model_config(folder, family="native").vision == VisionConfig()


def test_apply_scale_beside_hugging_face_files_decides(tmp_path):
    for apply_scale, expected in ((True, "mscale"), (False, "plain")):
        folder = both(tmp_path, apply_scale=apply_scale)
        for family in ("hf", "native"):
            assert read_model_config(folder, family=family).text.softmax_scale == expected
            assert read_model_config(folder, family=family, softmax_scale="plain").text.softmax_scale == "plain"


def test_what_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        read_config(tmp_path / "absent")
    with pytest.raises(MS4Error, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "params.json").write_text("[1]")
    with pytest.raises(WeightsError, match="one JSON object"):
        read_model_config(tmp_path, family="native")
