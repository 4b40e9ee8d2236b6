"""Opening stores and files that are none."""

import sqlite3

import pytest

from ms4_evals.store.schema import connect
from ms4_train.errors import EvaluationError, MS4Error, StorageError


def test_a_new_store_is_durable_and_can_be_opened_again(tmp_path):
    path = tmp_path / "r.sqlite"
    connection = connect(path, writable=True)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL: a commit is on the disk when it returns"
    connection.execute("INSERT INTO runs VALUES ('id', 'label', '{}', 0, '{}')")
    connection.close()
    reader = connect(path, writable=False)
    assert reader.execute("SELECT label FROM runs").fetchall() == [("label",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM runs")
    reader.close()


def test_a_reader_makes_no_file(tmp_path):
    with pytest.raises(EvaluationError, match="no such store"):
        connect(tmp_path / "none.sqlite", writable=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writable", [True, False])
def test_other_files_are_refused_and_left_alone(tmp_path, writable):
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be looked at\n" * 50)
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE t (x)")
    database.close()
    newer = tmp_path / "newer.sqlite"
    connection = connect(newer, writable=True)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for path in (text, other, newer):
        before = path.read_bytes()
        with pytest.raises(EvaluationError) as caught:
            connect(path, writable=writable)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store_only_for_a_writer(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(EvaluationError):
        connect(path, writable=False)
    connect(path, writable=True).close()
    connect(path, writable=False).close()


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(StorageError):
        connect(tmp_path, writable=True)


def test_damage_is_reported(tmp_path):
    path = tmp_path / "r.sqlite"
    connection = connect(path, writable=True)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    data = bytearray(path.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    path.write_bytes(data)
    with pytest.raises(MS4Error, match="damaged"):
        connect(path, writable=False)
