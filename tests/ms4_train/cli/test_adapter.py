"""``ms4 adapter``: what it prints, its exit codes, and faults in one line."""

import json
import subprocess
import sys

import pytest
from support.adapted import adapted, section
from support.checkpoints import rewrite
from typer.testing import CliRunner

from ms4_train.adapters import adapter_tensors, save_adapter
from ms4_train.cli.main import app
from ms4_train.errors import AdapterError

run = CliRunner()


@pytest.fixture
def folder(tmp_path):
    settings = section(preset="attention+experts")
    model = adapted(settings)
    save_adapter(adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="b", base_fingerprint="sha256:0")
    return tmp_path / "a"


def test_inspect(folder):
    done = run.invoke(app, ["adapter", "inspect", str(folder)])
    assert done.exit_code == 0
    for words in ("ms4-train, in PEFT's form", "sha256:0", "self_attn.q_a_proj", "nothing is missing or wrong"):
        assert words in done.output
    content = json.loads(run.invoke(app, ["adapter", "inspect", str(folder), "--json"]).output)
    assert {row["target"] for row in content["targets"]} >= {"model.layers.*.mlp.experts.down_proj"}


def test_inspect_names_problems_and_fails(folder):
    rewrite(folder, lambda tensors: tensors.popitem())
    done = run.invoke(app, ["adapter", "inspect", str(folder)])
    assert done.exit_code == 1
    assert "problem: " in done.output
    assert "is missing" in done.output


def test_export_prints_the_check(folder, tmp_path):
    done = run.invoke(app, ["adapter", "export", str(folder), str(tmp_path / "v"), "--format", "vllm"])
    assert done.exit_code == 0
    for words in ("--max-lora-rank 8", "2 layers fused: largest difference in a value", "kv_b_proj"):
        assert words in done.output
    assert (tmp_path / "v" / "adapter_model.safetensors").exists()
    done = run.invoke(app, ["adapter", "export", str(tmp_path / "v"), str(tmp_path / "p"), "--format", "peft"])
    assert "PEFT's form, 40 tensors" in done.output


def test_export_refuses_what_vllm_does_not_apply(tmp_path):
    settings = section(target_modules=["lm_head"])
    model = adapted(settings)
    save_adapter(adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="b", base_fingerprint="sha256:0")
    done = run.invoke(app, ["adapter", "export", str(tmp_path / "a"), str(tmp_path / "v"), "--format", "vllm"])
    assert isinstance(done.exception, AdapterError)
    assert not (tmp_path / "v").exists()


def test_missing_folder_is_one_line(tmp_path):
    command = [sys.executable, "-m", "ms4_train.cli", "adapter", "inspect", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "no such folder" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_help_shows_examples(command):
    done = run.invoke(app, ["adapter", command, "--help"])
    assert done.exit_code == 0
    assert f"ms4 adapter {command} runs/tiny/lora/adapter" in done.output
