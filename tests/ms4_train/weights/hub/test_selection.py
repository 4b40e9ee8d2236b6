"""Which files a layout takes, on listings like those of the public repositories."""

import pytest
from support.hub_client import both_copies

from ms4_train.errors import WeightsError
from ms4_train.weights.hub.selection import choose, copies_in, copy_of, is_code, is_excluded, is_pickle

NVFP4 = ["README.md", "params.json", "tekken.json", "consolidated.safetensors.index.json"]
NVFP4 += [f"consolidated-{part:05d}-of-00013.safetensors" for part in range(1, 14)]
HF_ONLY = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "README.md"]


def test_auto_takes_native_then_hf_then_an_adapter():
    assert choose("r", both_copies(), "auto")[0] == "native"
    assert choose("r", NVFP4, "auto") == ("native", sorted(NVFP4))
    assert choose("r", HF_ONLY, "auto") == ("hf", sorted(HF_ONLY))
    assert choose("r", ADAPTER, "auto") == ("adapter", sorted(ADAPTER))


def test_a_copy_needs_its_configuration_and_weights():
    assert copies_in(["params.json", "config.json", "model.safetensors"]) == ["hf"]
    assert copies_in(["consolidated.safetensors", "config.json"]) == []
    assert copies_in([*NVFP4, *HF_ONLY, *ADAPTER]) == ["native", "hf", "adapter"]


def test_all_takes_everything_but_what_is_never_downloaded():
    extra = ["weird.dat", "model.gguf", "sub/config.json", ".gitattributes", "SHA256SUMS", "hub.json", "a.py", "b.BIN", "c.pkl"]
    _, names = choose("r", [*NVFP4, *HF_ONLY, *extra], "all")
    assert set(names) == {*NVFP4, *HF_ONLY, "weird.dat", "model.gguf"}


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib", "npy", "npz", "nemo", "h5", "PT", "Bin"])
def test_pickles_are_never_chosen(suffix):
    assert is_pickle(f"model.{suffix}")
    assert all(f"model.{suffix}" not in choose("r", [*HF_ONLY, f"model.{suffix}"], layout)[1] for layout in ("auto", "hf", "all"))


@pytest.mark.parametrize("suffix", ["py", "pyc", "so", "sh", "ipynb", "PY"])
def test_programs_are_never_chosen(suffix):
    assert is_code(f"tokenizer.{suffix}")
    assert is_excluded(f"tokenizer.{suffix}")
    assert choose("r", [*HF_ONLY, f"tokenizer.{suffix}"], "hf")[1] == sorted(HF_ONLY)


def test_a_layout_that_is_not_there_says_which_are():
    with pytest.raises(WeightsError, match=r"no native copy of a model, but: hf.*--layout hf"):
        choose("r", HF_ONLY, "native")
    for layout in ("auto", "all", "hf"):
        with pytest.raises(WeightsError, match="holds no model"):
            choose("owner/name", ["config.json", "pytorch_model.bin"], layout)


def test_names_that_differ_in_case_only():
    with pytest.raises(WeightsError, match=r"README\.md and readme\.md|Weird"):
        choose("r", [*HF_ONLY, "README.md", "readme.md"], "all")
    choose("r", [*HF_ONLY, "README.md", "readme.md"], "hf")  # one of them only


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("params.json", "native"),
        ("consolidated-00001-of-00013.safetensors", "native"),
        ("model.safetensors.index.json", "hf"),
        ("adapter_model.safetensors", "adapter"),
        ("tokenizer.json", None),
        ("README.md", None),
    ],
)
def test_what_a_file_is_essential_to(name, copy):
    assert copy_of(name) == copy
