"""Each check against a machine made poorer: what is taken away is what is reported, and nothing raises."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ms4_train.cli import machine_checks
from ms4_train.cli.machine_checks import (
    Check,
    check_cpu_kernels,
    check_disk,
    check_logins,
    check_packages,
    check_process_groups,
    check_sandbox,
    check_system,
    check_tokenizer,
    check_torch,
    run_checks,
)


def only(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def test_this_machine():
    assert all(check.status == "ok" for check in [*check_system(), *check_packages()])
    assert check_torch()[0].status == "ok"
    assert check_process_groups()[0] == Check("gloo", "ok", "a process group of one works")
    assert only(check_tokenizer()).status == "ok"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(machine_checks, "_PACKAGES", ("surely-not-installed",))
    check = only(check_packages())
    assert (check.status, check.name) == ("missing", "surely-not-installed")
    assert check.fix


@pytest.mark.parametrize(("program", "found"), [(None, "not installed"), ("/bin/false", "bubblewrap"), ("/surely/not/there", "")])
def test_a_sandbox_that_does_not_work_is_missing(monkeypatch, program, found):
    monkeypatch.setattr("ms4_evals.sandbox.opening.find_bubblewrap", lambda: None if program is None else Path(program))
    check = only(check_sandbox())
    assert check.status == "missing"
    assert found in check.found
    assert check.fix


@pytest.mark.usefixtures("sandboxed")
def test_a_sandbox_that_works_is_ok():
    check = only(check_sandbox())
    assert (check.status, check.fix) == ("ok", None)
    assert "bubblewrap" in check.found


def test_without_mistral_common(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mistral_common" else find(name, *rest))
    assert only(check_tokenizer()).status == "missing"


def test_cpu_kernels_or_why_there_are_none(monkeypatch):
    found = only(check_cpu_kernels())
    assert found.status in ("ok", "warn")
    monkeypatch.setattr("ms4_kernels.native.library", lambda: None)
    monkeypatch.setattr("ms4_kernels.native.why_not", lambda: "no C compiler: cc gcc clang not found")
    without = only(check_cpu_kernels())
    assert without.status == "warn"
    assert "cc gcc clang" in without.found
    assert without.fix


def test_logins(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert [check.status for check in check_logins()] == ["warn", "warn"]
    for text, status in (
        ("machine api.wandb.ai login user password x\n", "ok"),
        ("machine other login user password x\n", "warn"),
        ("\xff]", "warn"),
    ):
        (tmp_path / "netrc").write_bytes(text.encode("latin-1"))
        os.chmod(tmp_path / "netrc", 0o600)  # noqa: PTH101
        assert check_logins()[1].status == status


def test_a_nearly_full_disk_is_a_warning(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    assert {check.status for check in check_disk()} == {"warn"}


def test_a_check_that_fails_is_a_row_not_a_crash(monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    for name in ("system", "packages", "torch", "triton", "cpu_kernels", "process_groups", "sandbox", "tokenizer", "logins", "disk"):
        monkeypatch.setattr(machine_checks, f"check_{name}", broken)
    checks = run_checks()
    assert len(checks) == 10
    assert {check.found for check in checks} == {"the check itself failed: RuntimeError: no such thing"}
