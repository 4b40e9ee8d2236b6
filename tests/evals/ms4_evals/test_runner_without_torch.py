"""Against a server, an evaluation needs none of torch, triton and deepspeed: a Python in which they cannot be imported runs one whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.flaky_answers import Rule
from support.flaky_server import FlakyServer

import ms4_evals
from ms4_evals.tasks.arithmetic import make_problems

BLOCKED = ("torch", "triton", "deepspeed")
PREAMBLE = f"""
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""
PROBLEMS = 5


def python(code: str, *arguments: str, cwd: Path, blocks: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", (PREAMBLE if blocks else "") + code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


CLI = "import runpy, sys; sys.argv[0] = 'ms4'; runpy.run_module('ms4_train.cli', run_name='__main__')"


@pytest.mark.parametrize("name", BLOCKED)
def test_control_the_block_blocks(tmp_path, name):
    found = python(f"import {name}.nn", cwd=tmp_path)
    assert found.returncode == 1
    assert f"ImportError: blocked: {name}" in found.stderr


def test_control_a_model_in_this_process_does_need_torch(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "recipe: eval\nstore: results.sqlite\nmodel: {path: nowhere, dtype: float32}\ntasks: [{task: arithmetic, problems: 2}]\n"
    )
    found = python(CLI, "eval", "run", "run.yaml", cwd=tmp_path)
    assert found.returncode != 0
    assert "the engine needs torch" in found.stderr


def test_every_module_can_be_imported(tmp_path):
    root = Path(ms4_evals.__file__).parent
    names = sorted(
        ".".join(("ms4_evals", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in root.rglob("*.py")
        if not path.name.endswith("_worker.py")
    )
    assert len(names) > 40
    code = f"""
import importlib
failed = []
for name in {names!r}:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
print("\\n".join(failed))
assert not {{name for name in sys.modules if name.split(".")[0] in {BLOCKED!r}}}
"""
    found = python(code, cwd=tmp_path)
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stdout + found.stderr[-2000:]


def run_file(folder: Path, base_url: str, tasks: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(
        f"""
recipe: eval
store: results.sqlite
label: scripted
endpoint:
  servers: [{{base_url: {base_url}}}]
  concurrency: 4
tasks: [{tasks}]
modes:
  none: {{temperature: 0.0, max_tokens: 64}}
  high: {{temperature: 0.7, max_tokens: 256}}
bootstrap_samples: 100
"""
    )
    return file


def report_of(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.md")))


def test_an_evaluation_runs_whole(tmp_path):
    problems = make_problems("digits", PROBLEMS, 1, "heldout", steps=6)
    table = {problem.question: str(problem.answer) for problem in problems}
    with FlakyServer(rule=Rule(table, accuracy=1.0)) as server:
        file = run_file(tmp_path, server.base_url, f"{{task: arithmetic, kind: digits, problems: {PROBLEMS}}}")
        first = python(CLI, "eval", "run", str(file), cwd=tmp_path)
        assert first.returncode == 0, first.stdout + first.stderr
        assert f"{2 * PROBLEMS} samples drawn" in first.stdout
        again = python(CLI, "eval", "run", str(file), cwd=tmp_path)
        assert f"0 samples drawn, {2 * PROBLEMS} taken from the store" in again.stdout, again.stdout + again.stderr
    report = report_of(tmp_path)
    assert "| none | 100.0 |" in report
    assert "| high | 100.0 |" in report
    # Thoughts came through in one mode only.
    assert "| thinking | characters | none | 5 | 0.0 |" in report
    assert "| thinking | characters | high | 5 | 0.0 |" not in report


@pytest.mark.slow
@pytest.mark.parametrize("command", [["report", "results.sqlite"], ["status", "results.sqlite"], ["servers"], ["tasks"], ["--help"]])
def test_other_commands(tmp_path, command):
    with FlakyServer() as server:
        file = run_file(tmp_path, server.base_url, "{task: arithmetic, problems: 1}")
        assert python(CLI, "eval", "run", str(file), cwd=tmp_path).returncode == 0
    found = python(CLI, "eval", *command, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.data
def test_aime_runs_whole(tmp_path, data_folder):
    rows = [json.loads(line) for line in (data_folder / "aime" / "aime25.jsonl").read_text().splitlines()][:3]
    assert rows
    with FlakyServer() as server:
        file = run_file(tmp_path, server.base_url, f"{{task: aime, years: [2025], path: {data_folder / 'aime'}, samples: 2, limit: 3}}")
        found = python(CLI, "eval", "run", str(file), cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "12 samples drawn" in found.stdout
