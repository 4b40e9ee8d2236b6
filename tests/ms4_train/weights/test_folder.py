"""Folders appear whole, replace only what they may, and clean up after processes that were killed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ms4_train.errors import StorageError
from ms4_train.weights.folder import whole_folder


def fill(target, text="new", **options):
    with whole_folder(target, **({"needed_bytes": 10, "replaceable": ["a.txt"]} | options)) as temporary:
        assert not (target / "a.txt").exists() or (target / "a.txt").read_text() != text
        (temporary / "a.txt").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_whole_and_replaces_its_like(tmp_path):
    fill(tmp_path / "x" / "y", "old")
    fill(tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "new"
    assert names(tmp_path / "x") == ["y"]


def test_empty_folder_is_used(tmp_path):
    (tmp_path / "y").mkdir()
    fill(tmp_path / "y", replaceable=None)
    assert names(tmp_path) == ["y"]


@pytest.mark.parametrize("replaceable", [None, ["a.txt"]])
def test_foreign_content_is_kept(tmp_path, replaceable):
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "b.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"b\.txt"):
        fill(tmp_path / "y", replaceable=replaceable)
    assert names(tmp_path / "y") == ["b.txt"]


def test_file_in_the_way_is_kept(tmp_path):
    (tmp_path / "y").write_text("mine")
    with pytest.raises(StorageError, match="not a folder"):
        fill(tmp_path / "y")


def test_lack_of_space_is_found_before_writing(tmp_path):
    with pytest.raises(StorageError, match="disk is full"):
        fill(tmp_path / "deep" / "y", needed_bytes=1 << 60)
    assert names(tmp_path) == []


def test_write_error_is_typed_and_leaves_nothing(tmp_path):
    def write_half():
        with whole_folder(tmp_path / "y", needed_bytes=1, replaceable=None) as temporary:
            (temporary / "a.txt").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="disk is full"):
        write_half()
    assert names(tmp_path) == []


def test_folder_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        fill(tmp_path / "file" / "y")


def test_leftovers_of_killed_processes_are_swept_and_those_of_live_ones_are_not(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from ms4_train.weights.folder import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), needed_bytes=1, replaceable=None) as folder:\n"
        "    (folder / 'a.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "y")], env=environment, check=False)
    (left,) = names(tmp_path)
    assert left.endswith(".partial")
    parts = left.split(".")
    parts[-3] = "1"  # the first process of the machine is always alive
    (tmp_path / ".".join(parts)).mkdir()
    fill(tmp_path / "y")
    assert names(tmp_path) == sorted([".".join(parts), "y"])


def test_link_is_replaced_not_followed(tmp_path):
    fill(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "newer")
    assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert (tmp_path / "link" / "a.txt").read_text() == "newer"
    assert names(tmp_path) == ["link", "real"]
