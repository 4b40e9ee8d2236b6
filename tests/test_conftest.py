"""Tests that need real data skip without it, saying so, and fail instead where skipping is forbidden, as in ``.ci/run``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PROBE = """
import pytest

@pytest.mark.data
def test_marked():
    pass

def test_by_fixture(data_folder):
    assert (data_folder / "aime").is_dir()

def test_other():
    from support import layout
"""


@pytest.mark.parametrize(
    ("has_data", "required", "outcome", "code"),
    [
        (False, False, "1 passed, 2 skipped", 0),
        (False, True, "1 passed, 2 errors", 1),
        (True, True, "3 passed", 0),
    ],
)
def test_without_data(tmp_path, has_data, required, outcome, code):
    (tmp_path / "test_probe.py").write_text(PROBE)
    shutil.copy(TESTS / "conftest.py", tmp_path)
    shutil.copytree(TESTS / "support", tmp_path / "support", ignore=shutil.ignore_patterns("__pycache__"))
    if has_data:
        (tmp_path / "data" / "aime").mkdir(parents=True)
    environment = {**os.environ, "MS4_TEST_DATA": str(tmp_path / "data"), "MS4_REQUIRE_DATA": "1" if required else "0"}
    configuration = ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-rs"]
    command = [sys.executable, "-m", "pytest", *configuration, str(tmp_path / "test_probe.py")]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert outcome in result.stdout, result.stdout + result.stderr
    assert result.returncode == code
    assert has_data or "MS4_TEST_DATA names no folder of test data" in result.stdout
