"""``ms4 leaderboard build`` and ``show`` as a user calls them."""

import pytest
from support.sites import MODELS, aime_task, fill_store
from typer.testing import CliRunner

from ms4_train.cli.leaderboard import app
from ms4_train.errors import EvaluationError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("leaderboard") / "r.sqlite"
    fill_store(path, [aime_task(1, 4)], MODELS[:2], scale=0.01)
    return path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def test_build_writes_a_site_and_prints_the_table_and_the_paths(store, tmp_path):
    done = call("build", store, "--out", tmp_path / "out", "--title", "Four problems")
    assert done.exit_code == 0, done.output
    assert "AIME 2025" in done.output
    assert done.output.splitlines()[-3:] == [str(tmp_path / "out" / name) for name in ("index.html", "leaderboard.png", "leaderboard.json")]
    assert "<title>Four problems</title>" in (tmp_path / "out" / "index.html").read_text()


def test_show_prints_and_writes_nothing(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("show", store)
    assert done.exit_code == 0, done.output
    assert MODELS[1].label in done.output.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_errors_withhold_scores_unless_allowed(tmp_path):
    import sqlite3

    from ms4_evals.store.seals import GRADE_COLUMNS, SAMPLE_COLUMNS, seal_of

    path = tmp_path / "r.sqlite"
    fill_store(path, [aime_task(1, 4)], MODELS[:1], scale=0.01)
    connection = sqlite3.connect(path)
    number = connection.execute("SELECT min(sample_id) FROM samples").fetchone()[0]
    connection.execute("UPDATE samples SET error = 'gone', error_class = 'connection' WHERE sample_id = ?", (number,))
    connection.execute("UPDATE grades SET verdict = 'error' WHERE sample_id = ?", (number,))
    for kind, table, columns in (("sample", "samples", SAMPLE_COLUMNS), ("grade", "grades", GRADE_COLUMNS)):
        row = connection.execute(f"SELECT {columns} FROM {table} WHERE sample_id = ?", (number,)).fetchone()
        connection.execute(f"UPDATE {table} SET seal = ? WHERE sample_id = ?", (seal_of(kind, row), number))
    connection.commit()
    connection.close()
    assert "unfinished" in call("show", path).output
    allowed = call("show", path, "--allow-errors").output
    assert "unfinished" not in allowed
    assert "errors left out" in allowed


@pytest.mark.parametrize("command", ["build", "show"])
def test_help_has_examples(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    assert f"ms4 leaderboard {command} results.sqlite" in done.output


@pytest.mark.parametrize("command", ["build", "show"])
def test_what_is_no_store_is_an_error_with_a_fix_and_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(command, "none.sqlite")
    assert isinstance(done.exception, EvaluationError)
    assert "Fix:" in str(done.exception)
    assert not list(tmp_path.iterdir())
