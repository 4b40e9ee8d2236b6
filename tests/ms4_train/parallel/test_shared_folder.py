"""A folder that is one for all ranks, or is not. Ranks are threads here; processes are in ``test_sft_same_start.py`` of the recipes."""

from __future__ import annotations

import threading
import time

import pytest
from support.rank_threads import on_threads

from ms4_train.errors import MS4Error, ParallelError, StorageError
from ms4_train.parallel import Mesh, shared_folder
from ms4_train.parallel.shared_folder import PAUSES, require_shared_folder

QUICK = (0.0, 0.05, 0.1)


def checked(folders, pauses=QUICK):
    return on_threads(lambda mesh: require_shared_folder(mesh, folders[mesh.rank], pauses=pauses), len(folders))


def test_one_folder_is_made_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "new" / "out", (tmp_path / "new" / "out").relative_to(tmp_path)):
        assert checked([folder] * 3) == [None] * 3
        assert list((tmp_path / "new" / "out").iterdir()) == []


def test_folders_that_are_not_one_are_refused_on_all_ranks(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    raised = checked([tmp_path / "a", tmp_path / "b", tmp_path / "a", tmp_path / "none"])
    assert all(isinstance(error, ParallelError) and error.on_all_ranks for error in raised), raised
    assert len({str(error) for error in raised}) == 1
    said = str(raised[0])
    assert said.startswith("output_dir: is not one folder for all ranks: ranks 1, 3 (host ")
    assert f"do not see in {tmp_path / 'b'} what rank 0 (host " in said
    assert said.endswith(f"wrote into {tmp_path / 'a'}. Fix: let it be one folder that all machines see.")
    assert not (tmp_path / "none").exists()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_of_another_content_does_not_count(tmp_path, monkeypatch):
    """What makes the refusal is what was read, not only that there is a name."""
    monkeypatch.setattr(shared_folder, "atomic_write_bytes", lambda file, data: file.write_bytes(data[::-1] + b"x"))
    assert all(isinstance(error, ParallelError) for error in checked([tmp_path] * 2))


def test_a_view_that_comes_late_is_waited_for(tmp_path, caplog, monkeypatch):
    """Rank 1's folder is empty at first, then a link to rank 0's."""
    monkeypatch.setattr(shared_folder, "PATIENT_LOOKS", 1)
    (tmp_path / "a").mkdir()
    threading.Timer(0.3, lambda: (tmp_path / "b").symlink_to("a")).start()
    begin = time.monotonic()
    assert checked([tmp_path / "a", tmp_path / "b"], (0.0, *[0.1] * 40)) == [None] * 2
    assert 0.25 < time.monotonic() - begin < 3
    assert [record.message.partition(" does not see yet")[0][:6] for record in caplog.records] == ["rank 1"]


def test_what_a_killed_process_left_is_swept_and_other_files_stay(tmp_path):
    for name in (".shared-0123456789abcdef", ".shared-notes", "metrics.jsonl"):
        (tmp_path / name).write_text("x")
    assert checked([tmp_path] * 2) == [None] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shared-notes", "metrics.jsonl"]


@pytest.mark.parametrize("full", [False, True])
def test_a_disk_that_cannot_be_written_is_told_to_all(tmp_path, monkeypatch, full):
    folder = tmp_path / "out"
    if full:
        monkeypatch.setattr(shared_folder, "atomic_write_bytes", _no_space)
    else:
        folder.write_text("a file stands here")
    main, other = checked([folder] * 2)
    assert isinstance(main, StorageError)
    assert isinstance(other, MS4Error)
    assert str(other) == f"rank 0 has stopped: {main}"
    assert main.on_all_ranks
    assert other.on_all_ranks
    assert main.exit_code == other.exit_code == (75 if full else 2)


def _no_space(file, data):
    raise OSError(28, "No space left on device")


def test_one_process_and_a_rehearsal_write_nothing(tmp_path):
    require_shared_folder(Mesh(), tmp_path / "out")
    require_shared_folder(Mesh(0, 16, expert_parallel_size=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_wait_is_about_a_minute_and_no_pause_is_long():
    assert 60 <= sum(PAUSES) <= 70
    assert max(PAUSES) <= 5
