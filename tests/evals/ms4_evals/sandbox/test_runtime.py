"""What programs find: the interpreter and the packages named, under any layout of the host's Python, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.bubblewrap import default_user
from ms4_evals.sandbox.runtime import PREFIX, build_runtime

ROOT = Path(__file__).resolve().parents[4]
LIMITS = Limits(wall_seconds=20.0)

LOOK = """
import json, os, sys
found = {}
for name in ("numpy", "sortedcontainers", "pip", "torch", "pytest"):
    try:
        __import__(name)
        found[name] = True
    except ImportError:
        found[name] = False
print(json.dumps({
    "version": list(sys.version_info[:3]), "executable": sys.executable, "prefix": sys.prefix, "top": sorted(os.listdir("/")),
    "found": found, "etc": os.listdir("/etc") if os.path.isdir("/etc") else [],
}))
"""


def test_a_program_finds_the_interpreter_and_the_packages(sandbox):
    outcome = sandbox.run({"main.py": LOOK.encode()}, ("-I", "main.py"), limits=LIMITS)
    assert outcome.status == "exited", outcome
    seen = json.loads(outcome.stdout)
    assert seen["version"] == list(sys.version_info[:3])
    assert seen["executable"].startswith(PREFIX)
    assert seen["found"] == {"numpy": True, "sortedcontainers": True, "pip": False, "torch": False, "pytest": False}
    assert set(seen["top"]) <= {"box", "dev", "etc", "lib", "lib64", "proc", "python", "tmp", "usr"}
    assert set(seen["etc"]) <= {"ld.so.cache"}
    assert set(sandbox.packages) == {"numpy", "sortedcontainers"}


def test_numpy_computes_within_the_limits(sandbox):
    program = b"import numpy\na = numpy.arange(90000.0).reshape(300, 300)\nprint(int((a @ a).trace() == numpy.einsum('ij,ji', a, a)))"
    outcome = sandbox.run({"main.py": program}, ("-I", "main.py"), limits=LIMITS)
    assert (outcome.status, outcome.stdout) == ("exited", b"1\n"), outcome


def test_packages_are_those_that_are_installed():
    runtime = build_runtime(("numpy", "no_such_package_at_all"))
    assert list(runtime.packages) == ["numpy"]
    assert build_runtime(()).packages == {}


def test_a_copy_stands_in_where_nobody_may_not_enter(tmp_path, monkeypatch):
    closed = build_runtime((), is_for_nobody=True, storage=tmp_path)
    monkeypatch.setattr("ms4_evals.sandbox.runtime.is_open_to_everybody", lambda path: True)
    direct = build_runtime((), is_for_nobody=True, storage=tmp_path)
    assert direct.python == closed.python
    assert str(Path(sys.base_prefix)) in " ".join(direct.mounts)
    if closed.mounts != direct.mounts:
        (copy,) = tmp_path.iterdir()
        assert (copy / "bin").is_dir()
        assert str(copy) in closed.mounts


SYSTEM_PYTHON = Path("/usr/bin/python3")

AS_SYSTEM_PYTHON = """
import sys
from pathlib import Path
from ms4_evals.sandbox.bubblewrap import BubblewrapSandbox, default_user
from ms4_evals.sandbox.runtime import build_runtime
user = default_user()
runtime = build_runtime(("distro_or_nothing",), is_for_nobody=user is not None)
with BubblewrapSandbox(Path(sys.argv[1]), "0", runtime, user=user) as sandbox:
    outcome = sandbox.run({"main.py": sys.stdin.buffer.read()}, ("-I", "main.py"))
assert outcome.status == "exited", outcome
sys.stdout.buffer.write(outcome.stdout)
"""


def test_the_layout_of_a_distribution(sandbox):
    """Debian keeps packages elsewhere and its library in ``/usr/lib``, which is mounted for the C library too."""
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no Python of the distribution")
    version = subprocess.run([SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, check=True)
    if version.stdout != b"True\n":
        pytest.skip("the distribution's Python is too old for this code")
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "evals"))), "PATH": os.environ["PATH"]}
    command = [SYSTEM_PYTHON, "-B", "-c", AS_SYSTEM_PYTHON, sandbox._binary]
    result = subprocess.run(command, input=LOOK.encode(), capture_output=True, env=environment, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()
    seen = json.loads(result.stdout)
    assert seen["executable"].startswith(PREFIX)
    assert seen["found"] == dict.fromkeys(seen["found"], False)


def test_who_programs_run_as():
    assert default_user() == (65534 if os.geteuid() == 0 else None)
