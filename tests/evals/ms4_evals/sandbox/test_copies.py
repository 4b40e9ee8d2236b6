"""Copies that everybody may read: made once, again when something changed, refused when somebody else could write to them."""

from __future__ import annotations

import pytest

from ms4_evals.sandbox.copies import Piece, copy_for_everybody, is_open_to_everybody
from ms4_train.errors import EvaluationError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "closed" / "lib"
    (folder / "test").mkdir(parents=True)
    (folder / "a.py").write_text("a")
    (folder / "a.py").chmod(0o600)
    (folder / "run").write_text("run")
    (folder / "run").chmod(0o700)
    (folder / "test" / "big.py").write_text("x")
    (tmp_path / "closed").chmod(0o700)
    return folder


def test_a_copy_is_open_and_holds_what_programs_need(source, tmp_path):
    storage = tmp_path / "storage"
    storage.mkdir()
    copy = copy_for_everybody(
        [Piece(source, "lib/python"), Piece(source / "run", "bin/run")], storage, folders=["lib/python/site-packages"]
    )
    assert (copy / "lib/python/a.py").read_text() == "a"
    assert (copy / "lib/python/a.py").stat().st_mode & 0o777 == 0o644
    assert (copy / "bin/run").stat().st_mode & 0o777 == 0o755
    assert not (copy / "lib/python/test").exists()
    assert list((copy / "lib/python/site-packages").iterdir()) == []
    assert copy.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in storage.iterdir()] == [copy.name]
    # The original keeps its own mode.
    assert (source / "a.py").stat().st_mode & 0o777 == 0o600


def test_a_copy_is_made_once_and_again_after_a_change(source, tmp_path):
    pieces = [Piece(source / "a.py", "a.py")]
    first = copy_for_everybody(pieces, tmp_path)
    inode = (first / "a.py").stat().st_ino
    assert copy_for_everybody(pieces, tmp_path) == first
    assert (first / "a.py").stat().st_ino == inode
    (source / "a.py").write_text("changed")
    second = copy_for_everybody(pieces, tmp_path)
    assert second != first
    assert (second / "a.py").read_text() == "changed"


def test_a_copy_that_others_can_write_is_refused(source, tmp_path):
    pieces = [Piece(source / "a.py", "a.py")]
    copy = copy_for_everybody(pieces, tmp_path)
    copy.chmod(0o777)
    with pytest.raises(EvaluationError, match="not ours alone") as caught:
        copy_for_everybody(pieces, tmp_path)
    assert caught.value.fix


def test_no_room_for_a_copy(source, tmp_path):
    with pytest.raises(EvaluationError, match="cannot copy") as caught:
        copy_for_everybody([Piece(source, "lib")], tmp_path / "missing")
    assert caught.value.fix is not None
    assert "missing" in caught.value.fix


def test_what_everybody_may_read(tmp_path):
    assert is_open_to_everybody(type(tmp_path)("/usr/lib"))
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "file").write_text("")
    link = tmp_path / "link"
    link.symlink_to(folder / "file")
    for parent in [tmp_path, *tmp_path.parents]:
        if not parent.stat().st_mode & 0o001:
            # pytest's own folders are closed to others.
            assert not is_open_to_everybody(folder / "file")
            return
    assert is_open_to_everybody(link)
    folder.chmod(0o700)
    assert not is_open_to_everybody(link)


def test_a_file_that_is_gone_is_open_to_nobody(tmp_path):
    assert not is_open_to_everybody(tmp_path / "gone")
