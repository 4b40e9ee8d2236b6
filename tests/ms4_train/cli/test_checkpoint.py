"""``ms4 checkpoint``: what it prints, its exit codes, what it deletes and what it refuses."""

import json

import pytest
from support.run_state import small_engine, train_small
from support.run_state_saves import save
from support.sft_files import sft_run, write_files
from typer.testing import CliRunner

from ms4_train.checkpoint import FolderLock
from ms4_train.cli.main import app
from ms4_train.errors import CheckpointError, ConfigError

run = CliRunner()


@pytest.fixture
def folder(tmp_path):
    """The output folder of a run with three checkpoints."""
    engine = small_engine()
    for step in (1, 2, 3):
        train_small(engine, 1)
        save(tmp_path / "run" / "checkpoints", engine, step, keep=3)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2, "loss": 0.125}\n')
    return tmp_path / "run"


def flip(folder, step):
    path = next((folder / "checkpoints" / f"step-{step:06d}").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_list(folder):
    done = run.invoke(app, ["checkpoint", "list", str(folder)])
    assert done.exit_code == 0
    for words in ("0.1250", "1 rank", "whole"):
        assert words in done.output
    content = json.loads(run.invoke(app, ["checkpoint", "list", str(folder / "checkpoints"), "--json"]).output)
    assert [(item["step"], item["state"], item["loss"]) for item in content["checkpoints"]] == [
        (1, "whole", None),
        (2, "whole", 0.125),
        (3, "whole", None),
    ]


def test_list_says_what_is_wrong(folder):
    flip(folder, 3).unlink()
    done = run.invoke(app, ["checkpoint", "list", str(folder)])
    assert done.exit_code == 0
    assert "damaged: " in done.output
    assert "the file is missing" in done.output


def test_verify(folder):
    done = run.invoke(app, ["checkpoint", "verify", str(folder)])
    assert done.exit_code == 0
    assert "step-000003" in done.output
    assert "GB/s" in done.output
    assert "step-000002" not in done.output
    path = flip(folder, 2)
    assert run.invoke(app, ["checkpoint", "verify", str(folder)]).exit_code == 0, "the newest one is good"
    done = run.invoke(app, ["checkpoint", "verify", str(folder), "--all"])
    assert done.exit_code == 1
    assert f"damaged: {path}" in done.output
    assert done.output.count("good: ") == 2
    done = run.invoke(app, ["checkpoint", "verify", str(path.parent), "--json"])
    assert done.exit_code == 1
    (item,) = json.loads(done.output)["checkpoints"]
    assert str(path) in item["problems"][0]


def test_prune_asks(folder):
    done = run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", "2"], input="n\n")
    assert done.exit_code == 0
    assert "goes: " in done.output
    assert steps(folder) == ["step-000001", "step-000002", "step-000003"]
    assert run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", "2"], input="").exit_code != 0, "nobody answers"
    assert steps(folder) == ["step-000001", "step-000002", "step-000003"]
    run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", "2"], input="y\n")
    assert steps(folder) == ["step-000002", "step-000003"]


def test_prune_counts_good_ones(folder):
    flip(folder, 3)
    done = run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", "2", "--yes"])
    assert done.exit_code == 0
    assert "stays, damaged" in done.output
    assert "nothing was deleted" in done.output
    assert steps(folder) == ["step-000001", "step-000002", "step-000003"]


def test_prune_refuses(folder):
    for keep in ("0", "1"):
        done = run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", keep, "--yes"])
        assert isinstance(done.exception, CheckpointError)
    lock = FolderLock(folder)
    try:
        done = run.invoke(app, ["checkpoint", "prune", str(folder), "--keep", "2", "--yes"])
        assert isinstance(done.exception, CheckpointError)
        assert "another run" in str(done.exception)
    finally:
        lock.release()
    assert len(steps(folder)) == 3


def test_a_run_file_names_its_folder(tmp_path):
    config = sft_run(tmp_path, "run")
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    save(tmp_path / "run" / "checkpoints", small_engine(steps=1), 1)
    done = run.invoke(app, ["checkpoint", "list", str(tmp_path / "run.yaml"), "--json"])
    assert [item["step"] for item in json.loads(done.output)["checkpoints"]] == [1]
    (tmp_path / "eval.yaml").write_text("recipe: eval\n")
    assert isinstance(run.invoke(app, ["checkpoint", "list", str(tmp_path / "eval.yaml")]).exception, ConfigError)


def test_nothing_there(tmp_path):
    for command in (["list"], ["verify"], ["prune", "--keep", "2"]):
        done = run.invoke(app, ["checkpoint", command[0], str(tmp_path), *command[1:]])
        assert isinstance(done.exception, CheckpointError)


def test_export(tmp_path):
    from ms4_recipes import sft

    write_files(tmp_path, rows=20)
    sections = {"training": {"max_steps": 1, "save_strategy": "steps"}, "adapter": {"r": 2, "target_modules": ["o_proj"]}}
    sft.run(sft_run(tmp_path, "run", **sections))
    done = run.invoke(app, ["checkpoint", "export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "the adapter of step 1" in done.output
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / "adapter" / name).read_bytes()


@pytest.mark.parametrize("command", ["list", "verify", "prune", "export"])
def test_every_command_shows_examples(command):
    done = run.invoke(app, ["checkpoint", command, "--help"])
    assert done.exit_code == 0
    assert f"ms4 checkpoint {command} " in done.output
