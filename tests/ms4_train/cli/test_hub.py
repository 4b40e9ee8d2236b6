"""``ms4 pull`` and ``ms4 push`` as a user runs them, against a hub on this machine that HF_ENDPOINT names."""

import os
import subprocess
import sys

import pytest
import typer
from support.hub_client import both_copies, hub_client
from support.hub_server import TOKEN
from typer.testing import CliRunner

from ms4_train.cli import hub as commands
from ms4_train.weights.checksums import check_sums

PROGRAM = """
import sys, typer
from ms4_train.cli import hub, main
app = typer.Typer(pretty_exceptions_enable=False)
app.command("pull")(hub.pull)
app.command("push")(hub.push)
main.app = app
main.main()
"""


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with hub_client(monkeypatch, tmp_path_factory.mktemp("home")) as hub:
        yield hub


def ms4(hub, tmp_path, *arguments, **variables):
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = {**os.environ, **settings, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_pull_then_push_then_pull(hub, tmp_path):
    commit = hub.add("owner/model", both_copies())
    result = ms4(hub, tmp_path, "pull", "owner/model", tmp_path / "out", "--layout", "hf")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"owner/model: commit {commit}\n")
    assert f"warning: no revision was named, so the main branch was taken; --revision {commit}" in result.stderr
    check_sums(tmp_path / "out")
    result = ms4(hub, tmp_path, "push", tmp_path / "out", "me/mine", HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    assert hub.repos["me/mine"].private
    mine = hub.repos["me/mine"].branches["main"]
    assert f"ms4 pull me/mine OUT --revision {mine}" in result.stdout
    again = ms4(hub, tmp_path, "pull", "me/mine", tmp_path / "back", "--revision", mine, HF_TOKEN=TOKEN)
    assert again.returncode == 0, again.stderr
    assert check_sums(tmp_path / "back") == check_sums(tmp_path / "out")
    assert "warning" not in again.stderr


def test_errors_are_one_line_with_the_fix_and_no_token(hub, tmp_path):
    result = ms4(hub, tmp_path, "pull", "owner/nothing", tmp_path / "out", HF_TOKEN=TOKEN)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: owner/nothing: does not exist, or is private to others. Fix: ")
    assert len(result.stderr.splitlines()) == 1
    assert TOKEN not in result.stderr


@pytest.mark.parametrize(("name", "epilog"), [("pull", commands.PULL_EXAMPLES), ("push", commands.PUSH_EXAMPLES)])
def test_help_shows_every_line_of_the_examples(name, epilog):
    app = typer.Typer(rich_markup_mode="rich")
    app.command(name, epilog=epilog)(getattr(commands, name))
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    shown = "".join(result.output.split())
    for line in (epilog + getattr(commands, name).__doc__).splitlines():
        assert "".join(line.split()) in shown, line
    assert f"ms4 {name}" in epilog


def test_the_commands_themselves_import_nothing_heavy():
    code = "import sys, ms4_train.cli.hub; print([n for n in ('torch', 'huggingface_hub', 'httpx2', 'rich.progress') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_bar_counts_hashed_bytes_on_a_terminal_only(capsys):
    with commands._hashing_bar() as (say, progress):
        progress(1000)
        say("a line")
        progress(1000)
    assert capsys.readouterr() == ("a line\n", "")
