"""What may be published, and what is refused: unfinished work, pickles, links, damaged or missing shards."""

import json
import os

import pytest
from support.hub_client import safetensors_bytes

from ms4_train.errors import UntrustedInputError, WeightsError
from ms4_train.weights.checksums import SUMS_FILE, write_sums
from ms4_train.weights.hub.local_model import check_stated_sums, read_local_model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(10))
    return tmp_path


def test_a_model_folder(folder):
    for name in (".gitignore", "train.py", "hub.json", "notes.md"):
        (folder / name).write_text("x")
    (folder / "logs").mkdir()
    model = read_local_model(folder)
    assert model.names == ("config.json", "model.safetensors", "notes.md")
    assert model.left_out == (".gitignore", "hub.json", "logs", "train.py")
    assert model.copies == ("hf",)
    assert model.stated_sums == {}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match="no model folder"):
        read_local_model(folder)
    with pytest.raises(WeightsError, match="no such folder"):
        read_local_model(folder / "nowhere")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pickle"),
        ("optimizer.PT", "pickle"),
        ("x.partial", "interrupted"),
        (".model.host.1.partial", "interrupted"),
        (".model.safetensors.12.ab.tmp", "interrupted"),
        ("model.safetensors.incomplete", "interrupted"),
        (".pull", "unfinished pull"),
        ("a\nb", "not a name that every system can store"),
        ("a\\b", "not a name that every system can store"),
    ],
)
def test_what_must_not_be_there(folder, name, words):
    read_local_model(folder)  # control
    (folder / name).write_text("x")
    with pytest.raises(WeightsError, match=words):
        read_local_model(folder)


def test_links_and_pipes_are_refused(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "secret"
    secret.write_text("secret")
    (folder / "README.md").symlink_to(secret)
    with pytest.raises(WeightsError, match=r"README\.md: is a link"):
        read_local_model(folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    with pytest.raises(WeightsError, match="not a file"):
        read_local_model(folder)


def test_a_cut_off_shard_and_one_that_is_missing(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UntrustedInputError):
        read_local_model(folder)
    (folder / "model.safetensors").write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors", "u": "model-3.safetensors"}}))
    with pytest.raises(WeightsError, match=r"model-2\.safetensors.*and 1 more"):
        read_local_model(folder)
    for bad in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"w": 3}}'):
        index.write_text(bad)
        with pytest.raises(WeightsError, match="no weight_map"):
            read_local_model(folder)


def test_stated_sums(folder):
    (folder / "train.py").write_text("x")
    write_sums(folder, {"config.json": "1" * 64, "train.py": "2" * 64})
    model = read_local_model(folder)
    good = {"config.json": "1" * 64, "model.safetensors": "3" * 64, SUMS_FILE: "4" * 64}
    check_stated_sums(model, good)  # what stays here is not hashed
    with pytest.raises(WeightsError, match=f"differs from {SUMS_FILE}"):
        check_stated_sums(model, good | {"config.json": "0" * 64})
    write_sums(folder, {"gone.safetensors": "1" * 64})
    with pytest.raises(WeightsError, match="is missing"):
        check_stated_sums(read_local_model(folder), good)
