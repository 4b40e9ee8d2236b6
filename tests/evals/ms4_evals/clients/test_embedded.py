"""The model of a configuration as a client: what identifies it, and what it is called."""

import json
import shutil
import sys

import pytest
from support.eval_files import write_model, write_ones_adapter

from ms4_evals.clients.embedded import default_label, load_model_under_test, open_embedded
from ms4_train.config.eval_tasks import EngineSection
from ms4_train.config.schema import ModelSection
from ms4_train.errors import MissingDependencyError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("files") / "tiny")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return write_ones_adapter(model, tmp_path_factory.mktemp("files") / "tuned" / "adapter")


def test_what_identifies_a_model_changes_with_each_of_its_parts(model, adapter, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    section = ModelSection(path=str(model), dtype="float32")

    def identity(**changes):
        return load_model_under_test(section.model_copy(update=changes))[2]

    assert identity() == identity(path=str(moved)), "where the files lie does not matter"
    others = [identity(dtype="bfloat16"), identity(softmax_scale="mscale"), identity(adapter=str(adapter))]
    assert len({json.dumps(value, sort_keys=True) for value in (identity(), *others)}) == 4
    assert identity(softmax_scale="plain") == identity(), "auto and what auto means are one model"


def test_default_labels(tmp_path):
    assert default_label(ModelSection(path=str(tmp_path / "small"))) == "small"
    section = ModelSection(path="runs/full/model", adapter="runs/lora/adapter")
    assert default_label(section) == "full/model + lora/adapter"


def test_the_client_has_the_models_identity(model):
    section = ModelSection(path=str(model), dtype="float32")
    client = open_embedded(section, EngineSection())
    assert client.identity() == load_model_under_test(section)[2]
    client.close()


def test_without_torch_the_fix_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError then
    with pytest.raises(MissingDependencyError, match="endpoint"):
        load_model_under_test(ModelSection(path=str(model)))
