"""What is written, that it is written whole, and that building again leaves nothing behind and harms nobody else's files."""

import json
import re

import pytest

from ms4_evals.leaderboard import publish as module
from ms4_evals.leaderboard.publish import publish
from ms4_train.errors import StorageError


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def named_data(folder):
    return re.search(r'"data":"(data-[0-9a-f]{12})"', (folder / "index.html").read_text())[1]


@pytest.fixture
def quick_plot(monkeypatch):
    """The plot has its own tests, and takes most of the time."""
    monkeypatch.setattr(module, "plot_png", lambda boards: b"\x89PNG")


def test_page_plot_values_and_data(boards, tmp_path):
    written = publish(boards, tmp_path / "new" / "out", title="Some title")
    folder, names = tmp_path / "new" / "out", ("index.html", "leaderboard.png", "leaderboard.json")
    assert {path.name for path in folder.iterdir()} == {*names, written.data.name}
    assert (written.page, written.plot, written.values) == tuple(folder / name for name in names)
    values = json.loads(written.values.read_text())
    assert values["format"] == "ms4-leaderboard/2"
    assert [board["title"] for board in values["boards"]] == [board.title for board in boards]
    assert written.plot.read_bytes().startswith(b"\x89PNG\r\n")
    assert named_data(folder) == written.data.name
    sizes = [path.stat().st_size for path in written.data.iterdir()]
    assert (sum(sizes), len(sizes)) == (written.num_bytes, written.num_files)
    assert "<title>Some title</title>" in written.page.read_text()


def test_the_same_stores_give_the_same_bytes(boards, tmp_path, quick_plot):
    publish(boards, tmp_path / "one")
    publish(boards, tmp_path / "two")
    publish(boards, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_every_file_that_the_page_names_is_there(rich_boards, tmp_path, read_data, quick_plot):
    data = publish(rich_boards, tmp_path).data
    there = {path.stem for path in data.iterdir()}
    named = set()
    for number in range(len(rich_boards)):
        details = read_data(data / f"b{number}.js")[1]
        problems = details["problems"]
        named |= {f"b{number}"} | {f"{problems['stem']}-{shard}" for shard in range(max(problems["last"]) + 1)}
        for cell in details["cells"].values():
            places = cell["samples"]
            named |= set(places["chunks"])
            last = max(max(read_data(data / f"{chunk}.js")[1]["b"]) for chunk in places["chunks"])
            named |= {f"{places['stem']}-{shard}" for shard in range(last + 1)}
    assert named == there


def test_building_again_removes_the_old_data_and_nothing_else(boards, rich_boards, tmp_path, quick_plot):
    old = publish(boards, tmp_path).data
    (tmp_path / "CNAME").write_text("example.org")
    (tmp_path / "data-mine").mkdir()
    strange = tmp_path / "data-0123456789ab"
    strange.mkdir()
    (strange / "notes.txt").write_text("not ours")
    (tmp_path / "data-unfinished-x").mkdir()  # as a killed build leaves it
    new = publish(rich_boards, tmp_path).data
    assert new != old
    assert not old.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "leaderboard.png", "leaderboard.json", "CNAME", "data-mine", strange.name, new.name)
    }


def test_a_build_that_fails_leaves_the_old_page_with_its_data(boards, rich_boards, tmp_path, quick_plot, monkeypatch):
    publish(boards, tmp_path)
    page, data = (tmp_path / "index.html").read_bytes(), files(tmp_path / named_data(tmp_path))

    def fail(*arguments):
        raise StorageError("the disk is full")

    monkeypatch.setattr(module, "write_samples", fail)
    with pytest.raises(StorageError):
        publish(rich_boards, tmp_path)
    assert (tmp_path / "index.html").read_bytes() == page
    assert files(tmp_path / named_data(tmp_path)) == data
    assert not list(tmp_path.glob("data-unfinished-*"))


def test_a_folder_that_cannot_be_made(boards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        publish(boards, tmp_path / "file")
