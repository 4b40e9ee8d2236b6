"""Families of files are told by the files alone; a folder without weights says what it holds."""

import pytest

from ms4_train.errors import MS4Error
from ms4_train.weights.layouts.detect import families_present, find_family

HF = ["model.safetensors"]
HF_INDEX = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
NATIVE = ["consolidated.safetensors"]
NATIVE_INDEX = ["consolidated.safetensors.index.json", "consolidated-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("files", "families"),
    [
        (HF, ["hf"]),
        (HF_INDEX, ["hf"]),
        (NATIVE, ["native"]),
        (NATIVE_INDEX, ["native"]),
        ([*HF, *NATIVE, "params.json", "config.json"], ["native", "hf"]),
        ([*HF, "params.json"], ["hf"]),
        (["consolidated-00001-of-00001.safetensors", "params.json"], ["native"]),
        (["consolidated-00001-of-00001.safetensors"], []),
        (["params.json", "config.json"], []),
    ],
)
def test_families(tmp_path, files, families):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert families_present(tmp_path) == families
    if families:
        assert find_family(tmp_path) == families[0]
        assert [find_family(tmp_path, family) for family in families] == families


@pytest.mark.parametrize(("file", "family"), [("config.json", "hf"), ("params.json", "native")])
def test_a_configuration_alone_decides_where_there_are_no_weights(tmp_path, file, family):
    (tmp_path / file).write_text("{}")
    assert find_family(tmp_path) == family


def test_the_other_family_is_not_taken_in_silence(tmp_path):
    (tmp_path / HF[0]).write_bytes(b"")
    with pytest.raises(MS4Error, match="no Mistral-native ones"):
        find_family(tmp_path, "native")


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["pytorch_model.bin"], "pickled"),
        (["consolidated.00.pth"], "pickled"),
        (["adapter_model.safetensors", "adapter_config.json"], "adapter"),
        (["model-00001-of-00002.safetensors"], "index"),
        (["consolidated-00001-of-00002.safetensors"], "params.json"),
        ([], "none of model.safetensors"),
    ],
)
def test_folders_without_readable_weights_say_what_they_hold(tmp_path, files, word):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(MS4Error) as caught:
        find_family(tmp_path)
    assert word in str(caught.value)
    assert caught.value.fix


def test_no_such_folder(tmp_path):
    with pytest.raises(MS4Error, match="no such folder"):
        find_family(tmp_path / "nowhere")


def test_a_link_into_a_cache_that_was_emptied_counts_as_weights(tmp_path):
    """So that opening names the broken link instead of another file."""
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert find_family(tmp_path) == "hf"
