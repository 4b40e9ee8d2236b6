"""The vision quickstart runs from nothing, does finished steps once, and (slow) teaches a tiny model to see."""

import io

import pytest
import torch
from rich.console import Console

from ms4_recipes.quickstart_vision import Scale, main, run
from ms4_train.adapters import load_adapter
from ms4_train.weights import base_fingerprint, load_model

SMALL = Scale(text_rows=40, train_overrides=("training.max_steps=2",), held_out=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what it printed, accuracies) of a run of two steps each."""
    folder, output = tmp_path_factory.mktemp("vision"), io.StringIO()
    return folder, run(folder, scale=SMALL, console=Console(file=output, width=200)), output


def test_every_step_is_done_and_reported(finished):
    folder, accuracies, output = finished
    assert accuracies.keys() == {"before", "language", "all"}
    assert all(0 <= value <= 1 for value in accuracies.values())
    printed = output.getvalue()
    assert "ms4 model add-vision" in printed
    assert "accuracy on 3 held-out pictures" in printed
    for preset, trains_vision in (("all", True), ("language", False)):
        model = load_model(folder / "base", dtype=torch.float32)
        load_adapter(model, folder / preset / "adapter", base_fingerprint=base_fingerprint(folder / "base"))
        adapted = [name for name, _ in model.named_parameters() if ".lora" in name]
        assert any(name.startswith("vision_tower") for name in adapted) == trains_vision
        assert any(".mlp.experts.lora." in name for name in adapted)


def test_finished_steps_are_not_done_again(finished):
    folder, accuracies, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    output = io.StringIO()
    assert run(folder, scale=SMALL, console=Console(file=output)) == accuracies
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file")]) == 2
    assert "a file stands where a folder is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_learns_to_see(tmp_path):
    """With the adapter on the language alone the tower stays random, and the eight numbers that it tells of a picture are not enough."""
    accuracies = run(tmp_path)
    assert accuracies["before"] < 0.25
    assert accuracies["all"] > 0.8
    assert accuracies["language"] < accuracies["all"] - 0.1
