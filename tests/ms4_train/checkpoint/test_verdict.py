"""What follows from what each rank found: damage is proven by the main rank, everything else is a refusal that renames nothing.

The second rank of these tests is a report, made by the code that makes the real one. On two processes: ``test_verdict_ranks.py``.
"""

import errno
import json
import os
import shutil
from dataclasses import asdict, replace

import pytest

from ms4_train.checkpoint import verdict as module
from ms4_train.checkpoint.manifest import DamagedError, Manifest, OtherVersionError, canonical_json, write_manifest, write_synced
from ms4_train.checkpoint.verdict import Report, refusal, verdict
from ms4_train.errors import CheckpointError
from ms4_train.parallel import Mesh

MAIN, OTHER = "a.bin", "b.bin"  # the files that fall to the main rank and to the second of two


def make(folder, step=4, tail=b""):
    folder.mkdir(parents=True)
    files = {MAIN: write_synced(folder / MAIN, b"larger" * 9), OTHER: write_synced(folder / OTHER, b"smaller" + tail)}
    write_manifest(folder, Manifest(step, files))
    return folder


class TwoRanks(Mesh):
    """The main rank of two. The second one sees ``seen``; in a second round it has nothing to say."""

    def __init__(self, seen, step=4, host="node2"):
        super().__init__(rank=0, world_size=2)
        second = replace(module._look(seen, step, 1, 2)[1], host=host)
        object.__setattr__(self, "rounds", [asdict(second), asdict(Report(host))])

    def all_gather_json(self, value):
        return json.loads(json.dumps([value, self.rounds.pop(0)]))


def judged(folder, seen=None, **keys):
    found = verdict(folder, 4, TwoRanks(folder if seen is None else seen, **keys))
    assert found is None or found.on_all_ranks
    return found


def flip(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def test_nothing_is_wrong(tmp_path):
    folder = make(tmp_path / "c")
    assert judged(folder) is None
    assert verdict(folder, 4, Mesh()) is None


@pytest.mark.parametrize("name", [MAIN, OTHER, "MANIFEST.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 3), lambda path: path.unlink()])
def test_control_damage_is_damage_whichever_rank_finds_it(tmp_path, name, damage):
    folder = make(tmp_path / "c")
    damage(folder / name)
    for mesh in (Mesh(), TwoRanks(folder)):
        found = verdict(folder, 4, mesh)
        assert type(found) is DamagedError
        assert found.file == str(folder / name)


def test_control_a_manifest_of_another_step_is_damage(tmp_path):
    folder = make(tmp_path / "c", step=5)
    assert type(judged(folder)) is DamagedError


def test_another_version_is_a_refusal(tmp_path):
    folder = make(tmp_path / "c")
    (folder / "MANIFEST.json").write_bytes(canonical_json({"format": "ms4-run-state", "version": 1, "step": 4, "files": {}}))
    assert type(judged(folder)) is OtherVersionError
    seen = make(tmp_path / "seen")
    found = judged(seen, folder)
    assert type(found) is CheckpointError, "another version on the second rank's machine alone is another folder"


def require_unseen(found, path):
    """A refusal with rank, both hosts, path and the way out; no reason to rename anything."""
    assert type(found) is CheckpointError
    assert found.file == str(path)
    assert found.message.startswith("rank 1 (host node2) does not see ")
    assert f"the main rank (host {os.uname().nodename})" in found.message
    assert "Nothing of it was renamed" in found.message
    assert "one folder that all machines see: mount it on node2 too" in (found.fix or "")


def test_a_rank_without_the_folder(tmp_path):
    folder = make(tmp_path / "c")
    require_unseen(judged(folder, tmp_path / "absent"), folder)


@pytest.mark.parametrize("name", [OTHER, "MANIFEST.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 3), lambda path: path.unlink()])
def test_what_one_rank_sees_and_the_main_rank_does_not_is_no_damage(tmp_path, name, damage):
    folder, seen = make(tmp_path / "c"), make(tmp_path / "seen")
    damage(seen / name)
    require_unseen(judged(folder, seen), seen / name)


def test_a_rank_with_another_good_checkpoint(tmp_path):
    """As on a machine whose own disk has a folder of this name."""
    folder, seen = make(tmp_path / "c"), make(tmp_path / "seen", tail=b"other")
    require_unseen(judged(folder, seen), folder)


def test_several_ranks_are_counted():
    reports = [Report("node1", "x"), Report("node2", "x"), *(Report("node3", None, "absent") for _ in range(8))]
    found = refusal("c", reports)
    assert found is not None
    assert "rank 2 (host node3) and 7 more do not see this folder; the main rank (host node1) does." in found.message


def refuse(monkeypatch, name, number, only=lambda path: True):
    true = module.verify_files

    def refused(folder, files):
        if name in files and only(folder):
            raise module.UnreadableError(folder / name, os.strerror(number))
        true(folder, files)

    monkeypatch.setattr(module, "verify_files", refused)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize(("name", "rank"), [(MAIN, 0), (OTHER, 1)])
def test_a_refusal_of_the_system_names_file_rank_and_reason(tmp_path, monkeypatch, number, name, rank):
    folder = make(tmp_path / "c")
    refuse(monkeypatch, name, number)
    found = judged(folder)
    assert type(found) is CheckpointError
    assert found.file == str(folder / name)
    for words in (os.strerror(number), f"on rank {rank} (host ", "not renamed"):
        assert words in found.message
    for words in ("start again", "name another checkpoint in training.resume_from_checkpoint"):
        assert words in (found.fix or "")
    alone = verdict(folder, 4, Mesh())
    assert type(alone) is CheckpointError
    assert "rank" not in alone.message


def test_the_main_rank_must_be_able_to_look_again(tmp_path, monkeypatch):
    folder, seen = make(tmp_path / "c"), make(tmp_path / "seen")
    flip(seen / OTHER)
    mesh = TwoRanks(seen)
    refuse(monkeypatch, OTHER, errno.EIO, only=lambda path: path == folder)
    found = verdict(folder, 4, mesh)
    assert type(found) is CheckpointError
    assert "on rank 0" in found.message


def test_a_refusal_comes_before_damage(tmp_path, monkeypatch):
    """A machine that cannot read is mended first; the damage is found then."""
    folder = make(tmp_path / "c")
    flip(folder / MAIN)
    refuse(monkeypatch, OTHER, errno.EIO)
    assert type(judged(folder)) is CheckpointError
    assert type(judged(folder, tmp_path / "absent")) is CheckpointError


def test_a_folder_that_went_away_is_not_damage(tmp_path):
    found = judged(tmp_path / "absent")
    assert type(found) is CheckpointError
    assert "No such file or directory" in found.message
    shutil.rmtree(make(tmp_path / "c"))
    assert type(verdict(tmp_path / "c", 4, Mesh())) is CheckpointError
