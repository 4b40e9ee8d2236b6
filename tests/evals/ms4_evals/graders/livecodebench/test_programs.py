"""The texts that run inside the sandbox: the quoted header, and that each is Python that names no expected output."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys

import pytest

from ms4_evals.graders.livecodebench.official_worker import WORKER
from ms4_evals.graders.livecodebench.programs import CANDIDATE, COMPILE_FAILED, COMPILE_PROGRAM, FUNCTION_PROGRAM, HEADER, STDIN_PROGRAM


def test_the_header_is_livecodebenchs_to_the_byte():
    # SHA-256 of `import_string` as it stands in testing_util.py of nvidia-livecodebench 26.3 and of LiveCodeBench 28fef95.
    assert hashlib.sha256(HEADER.encode()).hexdigest() == "de326da583c8d651f2df2c43f0aea30e57f17a3d93d4b6d7297403604c16108f"


@pytest.mark.parametrize("program", [STDIN_PROGRAM, FUNCTION_PROGRAM, COMPILE_PROGRAM, WORKER])
def test_every_program_is_python_and_knows_no_expected_output(program):
    ast.parse(program)
    assert "expected" not in program
    assert ".output" not in program


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("print(1)", 0),
        ("1 / 0", 0),
        ("raise SystemExit(3)", 0),
        ("def f(:\n", COMPILE_FAILED),
        ("return 1", COMPILE_FAILED),
        ("from __future__ import braces", COMPILE_FAILED),
        ("x = '\0'", COMPILE_FAILED),
        ("((" * 300 + "))" * 300, COMPILE_FAILED),
    ],
)
def test_compiling_runs_nothing(tmp_path, code, exit_code):
    (tmp_path / CANDIDATE).write_text(code)
    result = subprocess.run([sys.executable, "-c", COMPILE_PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == exit_code
    assert bool(result.stdout) == (exit_code != 0)
