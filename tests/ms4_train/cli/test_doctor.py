"""``ms4 doctor``: a row per finding, and no secret in any form of the output."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ms4_train.cli.main import app

SECRET = "hf_planted0123456789"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    environment = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "HOME": str(home), "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    results = [CliRunner().invoke(app, ["doctor", *more], env=environment) for more in ([], ["--json"])]
    assert [result.exit_code for result in results] == [0, 0]
    return results


def test_the_table_and_the_json_say_the_same(outputs):
    table, as_json = (output.stdout for output in outputs)
    checks = json.loads(as_json)["checks"]
    assert {check["status"] for check in checks} <= {"ok", "warn", "missing"}
    for check in checks:
        assert f"{check['status']} {check['name']} " in " ".join(table.split())
        assert check["status"] != "missing" or check["fix"]
    names = {check["name"] for check in checks}
    assert {
        "python",
        "torch",
        "gloo",
        "nccl",
        "triton",
        "CPU kernels",
        "deepspeed",
        "sandbox",
        "hub login",
        "wandb login",
        "tokenizer",
        "disk here",
    } <= names


def test_logins_are_found_and_never_shown(outputs):
    logins = {check["name"]: check["status"] for check in json.loads(outputs[1].stdout)["checks"] if "login" in check["name"]}
    assert logins == {"hub login": "ok", "wandb login": "ok"}
    assert all(SECRET not in output.stdout + output.stderr for output in outputs)
