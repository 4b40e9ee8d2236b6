"""``ms4 doctor``: a row per finding, and no secret in any form of the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SECRET = "hf_planted0123456789"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    environment = {**os.environ, "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "HOME": str(home), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ms4_train.cli", "doctor"]
    return [
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, check=True, env=environment)
        for more in ([], ["--json"])
    ]


def test_the_table_and_the_json_say_the_same(outputs):
    table, as_json = (output.stdout for output in outputs)
    checks = json.loads(as_json)["checks"]
    assert {check["status"] for check in checks} <= {"ok", "warn", "missing"}
    for check in checks:
        assert f"{check['status']:<7} {check['name']} " in " ".join(table.split()) or check["name"] in table
        assert check["status"] != "missing" or check["fix"]
    names = {check["name"] for check in checks}
    assert {
        "python",
        "torch",
        "gloo",
        "nccl",
        "triton",
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
