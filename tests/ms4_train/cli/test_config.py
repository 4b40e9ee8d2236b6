"""``ms4 config``: what it prints is what a user needs next."""

from __future__ import annotations

import json

import jsonschema
import pytest
from support.axolotl_files import write_axolotl
from support.models import tiny_config, tiny_model
from typer.testing import CliRunner

from ms4_train.cli.main import app
from ms4_train.config import load_run
from ms4_train.errors import ConfigError, ParallelError
from ms4_train.weights import save_model

RUN = "recipe: sft\noutput_dir: x\nmodel: {path: m}\ndata: {train: [{path: a}]}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["config", *map(str, arguments)])


def test_check(file):
    assert invoke("check", file).stdout == f"{file}: ok (recipe sft)\n"
    result = invoke("check", file, "seed=-1")
    assert isinstance(result.exception, ConfigError)
    assert "override seed=-1: seed: -1 is out of range" in str(result.exception)


def test_check_says_which_processes_do_not_fit(file, tmp_path):
    parallel = ("parallel.data_parallel_size=16", "parallel.expert_parallel_size=6")
    error = invoke("check", file, *parallel).exception
    assert isinstance(error, ParallelError)
    assert "parallel.expert_parallel_size: is 6, but there are 16 processes" in str(error)
    assert "use 4 or 8" in str(error)
    assert invoke("check", file, "parallel.expert_parallel_size=3").exit_code == 0  # nobody knows the experts
    config = tiny_config()
    save_model(tiny_model(config).state_dict(), tmp_path / "model", config=config)
    error = invoke("check", file, f"model.path={tmp_path / 'model'}", "parallel.expert_parallel_size=3").exception
    assert "a layer of the model has 8 experts" in str(error)


def test_check_names_the_file_and_says_what_it_did_not_look_at(file):
    refused = invoke("check", file, "parallel.data_parallel_size=2", "parallel.expert_parallel_size=3")
    assert isinstance(refused.exception, ParallelError)
    assert str(refused.exception).startswith(f"{file}: parallel.expert_parallel_size: is 3")
    absent = invoke("check", file, "model.path=nowhere")
    assert absent.exit_code == 0
    assert "not checked: what depends on the model; there is no folder nowhere" in absent.stderr


def test_show_prints_a_file_that_is_the_same_run(file, tmp_path):
    result = invoke("show", file, "adapter.r=8", "tracking.wandb.tags=[a, 'no']")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(result.output)
    assert load_run(resolved) == load_run(file, ["adapter.r=8", "tracking.wandb.tags=[a, 'no']"])


def test_schema(tmp_path):
    printed = json.loads(invoke("schema").output)
    jsonschema.Draft202012Validator.check_schema(printed)
    only = json.loads(invoke("schema", "--recipe", "eval").output)
    assert "tasks" in only["properties"]
    out = tmp_path / "schema.json"
    assert invoke("schema", "--out", out).output == f"wrote {out}\n"
    assert json.loads(out.read_text()) == printed
    assert isinstance(invoke("schema", "--recipe", "dpo").exception, ConfigError)


def test_import_axolotl_prints_a_run_file_and_reports_beside_it(tmp_path):
    source = write_axolotl(tmp_path, "qlora-text")
    printed = invoke("import-axolotl", source)
    (tmp_path / "printed.yaml").write_text(printed.stdout)
    assert load_run(tmp_path / "printed.yaml").adapter.r == 32
    assert "lora_r " in printed.stderr
    assert "-> adapter.r " in printed.stderr
    assert "36 of 180 modules" in " ".join(printed.stderr.split())
    out = tmp_path / "run.yaml"
    written = invoke("import-axolotl", source, "--out", out)
    assert (written.stdout, written.stderr) == (f"wrote {out}\n", printed.stderr)
    assert out.read_text() == printed.stdout


def test_import_axolotl_of_something_else(tmp_path):
    (tmp_path / "x.yml").write_text("learning_rate: 1\n")
    assert isinstance(invoke("import-axolotl", tmp_path / "x.yml").exception, ConfigError)
    assert invoke("import-axolotl", tmp_path / "absent.yml").exit_code == 1
