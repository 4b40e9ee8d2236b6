"""What is written, and that it is written whole."""

import json

import pytest

from ms4_evals.leaderboard.publish import publish
from ms4_train.errors import StorageError


def test_three_files(boards, tmp_path):
    written = publish(boards, tmp_path / "new" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["leaderboard.html", "leaderboard.json", "leaderboard.png"]
    values = json.loads(written.values.read_text())
    assert [board["title"] for board in values["boards"]] == [board.title for board in boards]
    again = publish(boards, tmp_path / "again")
    for first, second in zip(vars(written).values(), vars(again).values(), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_folder_that_cannot_be_made(boards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        publish(boards, tmp_path / "file")
