"""A journal names an item only after its files were flushed, and reads back what was whole."""

import json

import pytest

from ms4_train.weights.convert import journal
from ms4_train.weights.convert.journal import JOURNAL_FILE, JournalWriter, read_journal, start_journal

HEADER = {"arguments": {"to": "hf"}, "plan": "abc"}


@pytest.fixture
def begun(tmp_path):
    start_journal(tmp_path, HEADER)
    files = [tmp_path / f"file {number}" for number in range(3)]
    for file in files:
        file.touch()
    return tmp_path, files


def test_items_are_flushed_before_they_are_named(begun, monkeypatch):
    folder, files = begun
    events = []
    flush, append = journal.flush, journal._append
    monkeypatch.setattr(journal, "flush", lambda path: (flush(path), events.append(("flush", path)))[0])
    monkeypatch.setattr(journal, "_append", lambda path, content: (append(path, content), events.append(("line", content["items"])))[0])
    monkeypatch.setattr(journal, "BATCH_ITEMS", 4)
    writer = JournalWriter(folder, files, read_journal(folder))
    for item in range(10):
        writer.done(item, {item % 2}, 1, {})
    writer.close()
    assert [content for kind, content in events if kind == "line"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for place, (kind, items) in enumerate(events):
        if kind == "line":
            since = [content for other, content in events[:place] if other == "flush"][-len({item % 2 for item in items}) :]
            assert set(since) == {files[item % 2] for item in items}
    assert files[2] not in [content for kind, content in events if kind == "flush"]


def test_large_items_make_a_batch_of_their_own(begun, monkeypatch):
    folder, files = begun
    monkeypatch.setattr(journal, "BATCH_BYTES", 100)
    writer = JournalWriter(folder, files, read_journal(folder))
    for item in range(6):
        writer.done(item, {0}, 50, {})
    writer.close()
    lines = (folder / JOURNAL_FILE).read_text().splitlines()
    assert [json.loads(line)["items"] for line in lines[1:]] == [[0, 1], [2, 3], [4, 5]]


def test_what_was_written_comes_back_and_is_added_to(begun):
    folder, files = begun
    writer = JournalWriter(folder, files, read_journal(folder))
    writer.done(7, {0, 1}, 10, {"piece": 3})
    writer.close()
    state = read_journal(folder)
    assert (state.header, state.done, state.saturated) == (HEADER, {7}, {"piece": 3})
    writer = JournalWriter(folder, files, state)
    writer.done(8, {0}, 10, {"other": 1})
    writer.close()
    assert read_journal(folder).done == {7, 8}
    assert read_journal(folder).saturated == {"piece": 3, "other": 1}


def test_a_cut_off_line_is_dropped_and_written_over(begun):
    folder, files = begun
    writer = JournalWriter(folder, files, read_journal(folder))
    writer.done(1, {0}, 10, {})
    writer.close()
    with (folder / JOURNAL_FILE).open("ab") as handle:
        handle.write(b'{"items":[2,3')
    state = read_journal(folder)
    assert state.done == {1}
    writer = JournalWriter(folder, files, state)
    writer.done(5, {0}, 10, {})
    writer.close()
    assert read_journal(folder).done == {1, 5}


@pytest.mark.parametrize("damage", [b"", b"garbage\n", b"[]\n", b'{"a":1}\n{"items":3}\n', b'{"a":1}\n\x00\x00\n'])
def test_a_damaged_journal_is_not_trusted(tmp_path, damage):
    assert read_journal(tmp_path) is None
    (tmp_path / JOURNAL_FILE).write_bytes(damage)
    assert read_journal(tmp_path) is None


def test_a_disk_that_fails_is_reported_and_names_nothing(begun, monkeypatch):
    folder, files = begun

    def failing(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "flush", failing)
    writer = JournalWriter(folder, files, read_journal(folder))
    writer.done(1, {0}, 10, {})
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert read_journal(folder).done == set()
