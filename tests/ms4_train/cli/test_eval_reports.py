"""``ms4 eval status|report|compare|export`` as a user calls them, through the group's own application."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from support.made_stores import failed_sample, fill, made_evaluation, made_run, right_or_wrong, write_store
from typer.testing import CliRunner

from ms4_evals.report import build_report, write_report
from ms4_evals.store.results import ResultStore
from ms4_train.cli import eval_reports
from ms4_train.cli.eval_reports import app
from ms4_train.errors import MS4Error

BOTH = [made_evaluation("t", mode, 6, 2) for mode in ("none", "high")]


@pytest.fixture
def path(tmp_path):
    """A store of two runs: ``one`` solves every second problem, ``two`` all of them."""
    runs = {"one": right_or_wrong(lambda e, p, i: p % 2 == 0), "two": right_or_wrong(lambda *_: True)}
    return write_store(tmp_path / "r.sqlite", runs, BOTH)


def ms4(*arguments):
    """Standard output of a command; raises what the program would turn into one line and exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status(path):
    text = ms4("status", path)
    for phrase in ("one (", "two (", "50.0 [", "100.0 [", "complete"):
        assert phrase in text
    values = json.loads(ms4("status", path, "--json"))
    assert [run["label"] for run in values["runs"]] == ["one", "two"]
    assert values["store"] == str(path)
    assert values["runs"][0]["evaluations"][0]["planned"] == 12


def test_status_of_several_stores_and_of_an_empty_one(path, tmp_path):
    with ResultStore.open(tmp_path / "empty.sqlite"):
        pass
    text = ms4("status", path, tmp_path / "empty.sqlite")
    assert "holds no run" in text
    assert len(ms4("status", path, path, "--json").splitlines()) == 2


def test_status_is_shown_anew_until_interrupted(path, monkeypatch):
    shown = []

    def sleep(seconds):
        shown.append(seconds)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    result = CliRunner().invoke(app, ["status", str(path), "--watch", "0.5"])
    assert shown == [0.5] * 3
    assert result.stdout.count("one (") == 3


def test_a_report_is_the_one_that_the_run_wrote(path, tmp_path):
    """The settings come from the store, so the bytes are those of the report that an evaluation writes at its end."""
    text = ms4("report", path, "--run", "one", "--no-plots", "--verify")
    assert "48 records are as they were written." in text
    assert "high - none" in text
    with ResultStore.read(path) as store:
        report = build_report(store, made_run("one"), store.evaluations(made_run("one").run_id), confidence=0.95, resamples=200)
    for file in write_report(report, tmp_path / "direct"):
        assert (tmp_path / "r-reports" / file.name).read_bytes() == file.read_bytes()
    assert f"report: {tmp_path / 'r-reports'}" in text
    ms4("report", path, "--run", "one", "--no-plots", "--confidence", 0.8, "--out", tmp_path / "x")
    assert "80 % interval" in next((tmp_path / "x").glob("*.md")).read_text()


def test_a_report_with_plots(path, tmp_path):
    ms4("report", path, "--run", made_run("two").run_id[:10], "--out", tmp_path / "out")
    (image,) = (tmp_path / "out").glob("*-scores.png")
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.name in next((tmp_path / "out").glob("*.md")).read_text()


def test_an_incomplete_run_has_a_report_and_no_score_unless_asked_for(tmp_path):
    path = write_store(tmp_path / "r.sqlite", {"one": lambda e, p, i: failed_sample("timeout")}, BOTH[:1])
    with ResultStore.open(path) as store:
        fill(store, made_run("two"), BOTH[:1], lambda e, p, i: right_or_wrong(lambda *_: True)(e, p, i) if p else None)
    for name in ("one", "two"):
        result = CliRunner().invoke(app, ["report", str(path), "--run", name, "--no-plots"])
        assert isinstance(result.exception, MS4Error)
        assert "--allow-errors" in str(result.exception)
        assert "no score: 12 errors of 12" in result.stdout if name == "one" else "no score: 2 missing of 12" in result.stdout
    text = ms4("report", path, "--run", "two", "--no-plots", "--allow-errors")
    assert "100.0 %" in text
    assert "left out: 2 missing of 12 samples" in text


def test_compare_within_one_store_and_across_two(path, tmp_path):
    text = ms4("compare", path, "--first", "two", "--second", "one", "--out", tmp_path / "out")
    assert "+50.0" in text
    assert "3 problems differ" in text
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert values["tasks"][0]["modes"][0]["difference"]["value"] == 0.5
    assert "# two against one" in (tmp_path / "out" / "comparison.md").read_text()
    other = write_store(tmp_path / "o.sqlite", {"three": right_or_wrong(lambda *_: False)}, BOTH)
    found = json.loads(ms4("compare", path, other, "--first", "two", "--mode", "high", "--task", "t", "--json"))
    assert [mode["mode"] for mode in found["tasks"][0]["modes"]] == ["high"]
    assert found["tasks"][0]["modes"][0]["difference"]["value"] == 1.0


def test_export(path, tmp_path):
    assert "48 samples" in ms4("export", path, tmp_path / "s.parquet")
    assert len(pd.read_parquet(tmp_path / "s.parquet")) == 48
    assert "24 samples" in ms4("export", path, tmp_path / "s.jsonl", "--run", "two")
    assert "48 samples" in ms4("export", path, tmp_path / "s.data", "--format", "jsonl")
    assert len((tmp_path / "s.data").read_text().splitlines()) == 48


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "none.sqlite"], ["none.sqlite", "no such store"]),
        (["report", "{path}"], ["several runs", "one (", "two ("]),
        (["report", "{path}", "--run", "three"], ["three"]),
        (["compare", "{path}"], ["--first, --second"]),
        (["compare", "{path}", "{path}", "--first", "one"], ["several runs"]),
        (["compare", "{path}", "--first", "one", "--second", "two", "--task", "x"], ["task x"]),
        (["export", "{path}", "out.csv"], ["out.csv", "--format"]),
        (["export", "{path}", "out.jsonl", "--run", "x"], ["no run is called x"]),
    ],
)
def test_mistakes_name_the_fix(path, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    result = CliRunner().invoke(app, [argument.format(path=path) for argument in arguments])
    assert isinstance(result.exception, MS4Error)
    message = str(result.exception)
    assert "Fix: " in message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert set(tmp_path.iterdir()) == before, "nothing half-written"


@pytest.mark.parametrize("command", ["status", "report", "compare", "export"])
def test_help_has_examples(command):
    text = ms4(command, "--help")
    assert "Examples" in text
    assert f"ms4 eval {command} " in text
    assert f"ms4 eval {command} " in getattr(eval_reports, f"{command.upper()}_EXAMPLES")


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = (
        "import sys\nimport ms4_train.cli.eval_reports\n"
        "print(sorted({'torch', 'matplotlib', 'numpy', 'pyarrow', 'ms4_evals.report'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"
