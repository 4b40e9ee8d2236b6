"""``ms4 train``: a file in, a model out; errors as one line and exit code 2."""

import json

import pytest
from support.sft_files import sft_run, write_files

from ms4_train.cli.main import main
from ms4_train.config import to_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_files(tmp_path_factory.mktemp("cli"))
    (path / "run.yaml").write_text(to_yaml(sft_run(path, training={"max_steps": 2})))
    return path


def ms4(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, arguments)])
    return caught.value.code


def test_trains_with_overrides(folder, capsys):
    assert ms4(folder / "run.yaml", f"output_dir={folder / 'o'}", "training.max_steps=1") == 0
    assert f"written: {folder / 'o' / 'model'}" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (folder / "o" / "metrics.jsonl").read_text().splitlines()] == [1, 1]


def test_dry_run_stops_before_the_first_step(folder, capsys):
    assert ms4(folder / "run.yaml", "--dry-run") == 0
    assert "trained parameters:" in capsys.readouterr().out
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.max_stepz=1"], "max_steps"),
        (["model.path=absent"], "absent"),
        (["training.resume_from_checkpoint=absent"], "resume_from_checkpoint"),
        (["--nproc", "0"], "--nproc: is 0; at least one process is needed."),
        (["--nproc", "2", "model.pth=x"], "model.pth"),  # found before anything is started
    ],
)
def test_errors_are_one_line_and_exit_code_2(folder, capsys, arguments, message):
    assert ms4(folder / "run.yaml", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1


def test_a_mesh_that_cannot_be_is_refused_before_any_rank_is_started(folder, capsys, monkeypatch):
    monkeypatch.setattr("ms4_train.cli.launch.launch", lambda *_: pytest.fail("started"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ms4(folder / "run.yaml", "--nproc", 2, "parallel.expert_parallel_size=3") == 2
    assert (
        "parallel.expert_parallel_size: is 3, but a layer of the model has 8 experts, and there are 2 processes" in capsys.readouterr().err
    )


def test_an_evaluation_file_is_refused(folder, capsys):
    (folder / "eval.yaml").write_text(f"recipe: eval\nmodel: {{path: {folder / 'base'}}}\ntasks: [{{task: arithmetic}}]\n")
    assert ms4(folder / "eval.yaml") == 2
    assert "ms4 eval" in capsys.readouterr().err


def test_help_has_examples(capsys):
    assert ms4("--help") == 0
    shown = capsys.readouterr().out
    assert "--dry-run" in shown
