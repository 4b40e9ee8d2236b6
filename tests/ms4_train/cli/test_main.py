"""The program as a user meets it: real processes, exit codes, one-line errors, and how much a help page costs."""

from __future__ import annotations

import logging
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ms4_train.cli.main import app, main
from ms4_train.errors import DiskFullError, MS4Error

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    "model",
    "weights",
    "adapter",
    "pull",
    "push",
    "data",
    "train",
    "generate",
    "chat",
    "serve",
    "eval",
    "leaderboard",
    "checkpoint",
    "config",
    "doctor",
]
HEAVY = ("torch", "pydantic", "transformers", "datasets", "numpy", "ruamel", "mistral_common", "wandb", "deepspeed")
WIDE = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def ms4(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ms4_train.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=WIDE, **options)


def leaves(group=app, prefix=()):
    """(words of the command line, function, epilog) of every command."""
    for command in group.registered_commands:
        yield (*prefix, command.name or command.callback.__name__.replace("_", "-")), command.callback, command.epilog
    for inner in group.registered_groups:
        yield from leaves(inner.typer_instance, (*prefix, inner.name))


LEAVES = list(leaves())


def test_all_groups_are_there():
    assert {words[0] for words, _, _ in LEAVES} == set(COMMANDS)
    listed = ms4("--help").stdout
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", listed)] == []


@pytest.mark.parametrize("words", [words for words, _, _ in LEAVES], ids=" ".join)
def test_every_command_has_help_with_examples_that_survive_rendering(words):
    result = CliRunner().invoke(app, [*words, "--help"], env=WIDE)
    assert result.exit_code == 0, result.output
    assert "Examples" in result.output
    assert f"ms4 {' '.join(words)}" in result.output
    # Rich takes [words] in brackets for markup and drops them; what the author wrote must be what the reader sees.
    function, epilog = next((function, epilog) for leaf, function, epilog in LEAVES if leaf == words)
    shown = "".join(result.output.split())
    for line in ((epilog or "") + "\n" + (function.__doc__ or "").split("\f")[0]).splitlines():
        assert "".join(line.split()) in shown, f"lost in help: {line}"


def test_files_named_in_examples_exist():
    named = {
        path for _, _, epilog in [*LEAVES, ((), None, app.info.epilog)] for path in re.findall(r"configs/[\w/.-]+\.yaml", epilog or "")
    }
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_help_is_cheap_and_imports_nothing_heavy():
    best = 9.9
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ms4("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.4  # seconds of CPU; about 0.2 on an idle machine
    code = f"import sys, ms4_train.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_version():
    assert ms4("--version").stdout.startswith("ms4-train 0.")


def test_no_arguments_print_help_and_unknown_commands_a_near_one():
    assert "Usage: ms4" in ms4().stdout
    result = ms4("trian")
    assert result.returncode == 2
    assert "train" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_users_error_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "run.yaml").write_text("recipe: sft\noutput_dir: x\nmodel: {path: m}\ndata: {train: [{path: a}]}\nsede: 1\n")
    result = ms4("config", "check", "run.yaml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: run.yaml:5: sede: unknown key. Fix: did you mean seed?\n"


def test_a_full_disk_under_standard_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "ms4_train.cli", "config", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 75
    assert result.stderr.startswith("error: the disk is full")
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_leaves_ends_the_program_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "ms4_train.cli", "config", "schema"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 1


class Strange(MS4Error):
    exit_code = 7


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MS4Error("it broke.", file="f", fix="mend it."), 2, "error: f: it broke. Fix: mend it.\n"),
        (Strange("odd."), 7, "error: odd.\n"),
        (OSError(28, "No space left on device", "out/a"), 75, "error: out/a: the disk is full"),
        (DiskFullError("the disk is full."), 75, "error: the disk is full.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes(monkeypatch, capsys, error, code, text):
    probe = typer.Typer(pretty_exceptions_enable=False)

    @probe.command()
    def fail():
        raise error

    monkeypatch.setattr("ms4_train.cli.main.app", probe)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(text)


def test_warnings_say_that_they_are_warnings(monkeypatch, capsys):
    def warn(**_):
        logging.getLogger("ms4_train.some.module").warning("step-000006 is damaged.")

    monkeypatch.setattr("ms4_train.cli.main.app", warn)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert capsys.readouterr().err == "warning: step-000006 is damaged.\n"


def test_a_defect_of_ours_shows_a_traceback(monkeypatch):
    probe = typer.Typer(pretty_exceptions_enable=False)

    @probe.command()
    def fail():
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("ms4_train.cli.main.app", probe)
    with pytest.raises(ZeroDivisionError):
        main([])


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["unset", "kept", "policy"],
)
def test_idle_threads_may_sleep_unless_the_user_says_otherwise(monkeypatch, before, after) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == after
    os.environ.pop("GOMP_SPINCOUNT", None)
