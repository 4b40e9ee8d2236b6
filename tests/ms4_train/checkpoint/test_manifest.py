"""The manifest finds every changed bit, in the files and in itself."""

import contextlib
import errno
import hashlib
import importlib
import json
import operator
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_train.checkpoint.manifest import (
    DamagedError,
    FileSum,
    Manifest,
    OtherVersionError,
    UnreadableError,
    canonical_json,
    files_of_rank,
    read_manifest,
    verify_folder,
    write_manifest,
    write_synced,
)
from ms4_train.errors import CheckpointError


def make(folder, step=4):
    folder.mkdir()
    files = {name: write_synced(folder / name, data) for name, data in {"a.bin": b"hello world", "b.json": b"{}"}.items()}
    mesh = {"world_size": 2, "expert_parallel_size": 1, "zero_stage": 2}
    write_manifest(folder, Manifest(step, files, mesh, "ab" * 32, {"torch": "2.13.0", "deepspeed": None}))
    return folder


def test_whole_folder_verifies(tmp_path):
    folder = make(tmp_path / "c")
    assert verify_folder(folder) == 4
    assert verify_folder(folder, 4) == 4
    (folder / "note.txt").write_text("a file of the user's own")
    assert verify_folder(folder) == 4


def test_changed_bits_are_found_everywhere(tmp_path):
    folder = make(tmp_path / "c")
    flips = 0
    for path in folder.iterdir():
        original = path.read_bytes()
        for position in range(len(original)):
            for bit in range(position % 2, 8, 2 if path.name == "MANIFEST.json" else 3):
                changed = bytearray(original)
                changed[position] ^= 1 << bit
                path.write_bytes(changed)
                with pytest.raises(CheckpointError):
                    # The step is given, as the search for a checkpoint gives it: the number in the folder's name.
                    verify_folder(folder, 4)
                flips += 1
        path.write_bytes(original)
    assert flips > 1000
    assert verify_folder(folder, 4) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "not in the form"),
        (lambda m: m.update(version="2"), "its own sum is wrong"),
        (lambda m: m.update(extra=1), "not in the form"),
        (lambda m: m["files"].update({"../a.bin": m["files"]["a.bin"]}), "not a file of this folder"),
        (lambda m: m["files"].update({"a\0b": m["files"]["a.bin"]}), "not a file of this folder"),
        (lambda m: m["files"].update({"absent": m["files"]["a.bin"]}), "missing"),
        (lambda m: m["files"]["a.bin"].update(bytes=1), "11 bytes instead of 1"),
        (lambda m: m["files"]["a.bin"].pop("sha256"), "it is no manifest"),
        (lambda m: m.update(files=[]), "it is no manifest"),
    ],
)
def test_other_contents_are_refused(tmp_path, change, message):
    folder = make(tmp_path / "c")
    content = json.loads((folder / "MANIFEST.json").read_text())
    change(content)
    rewrite(folder, content, mend="own sum" not in message)
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def rewrite(folder, content, mend=True):
    """Write a changed manifest; with ``mend``, as if it had been written so."""
    if mend:
        content["manifest_sha256"] = hashlib.sha256(
            canonical_json({key: value for key, value in content.items() if key != "manifest_sha256"})
        ).hexdigest()
    (folder / "MANIFEST.json").write_bytes(canonical_json(content))


def test_another_version_is_told_from_damage(tmp_path):
    """Its own sum proves that the number was written so; without that, a changed number is damage."""
    folder = make(tmp_path / "c")
    content = json.loads((folder / "MANIFEST.json").read_text())
    content["version"] = 3
    rewrite(folder, content, mend=False)
    with pytest.raises(CheckpointError, match="damaged"):
        verify_folder(folder)
    rewrite(folder, content)
    with pytest.raises(OtherVersionError, match="format version 3; this program reads version 2"):
        verify_folder(folder)


def test_what_it_says_of_the_run_comes_back(tmp_path):
    manifest = read_manifest(make(tmp_path / "c"))
    assert manifest.mesh == {"world_size": 2, "expert_parallel_size": 1, "zero_stage": 2}
    assert (manifest.step, manifest.configuration_sha256) == (4, "ab" * 32)
    assert manifest.versions == {"torch": "2.13.0", "deepspeed": None}


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 100), max_size=12), st.integers(1, 5))
def test_ranks_share_out_the_files(sizes, ranks):
    files = {name: FileSum("", size) for name, size in sizes.items()}
    shares = [files_of_rank(files, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(item.bytes for item in share.values()) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


def test_a_failed_write_gives_its_space_back(tmp_path):
    def proceed(count):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_synced(tmp_path / "a", b"abc", proceed=proceed)
    assert list(tmp_path.iterdir()) == []


def test_parts_are_one_file(tmp_path):
    whole = bytes(range(256)) * 40000
    item = write_synced(tmp_path / "a", whole[:7], memoryview(whole)[7:9_000_000], whole[9_000_000:])
    assert (tmp_path / "a").read_bytes() == whole
    assert item == FileSum(hashlib.sha256(whole).hexdigest(), len(whole))


def test_a_link_is_not_a_file(tmp_path):
    folder = make(tmp_path / "c")
    (folder / "a.bin").rename(tmp_path / "elsewhere")
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        verify_folder(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DamagedError, match=r"MANIFEST\.json: the checkpoint is damaged: the file is missing"):
        verify_folder(tmp_path)
    (tmp_path / "MANIFEST.json").mkdir()
    with pytest.raises(DamagedError, match="it is no manifest"):
        verify_folder(tmp_path)


@contextlib.contextmanager
def refusing(number, name, calls=("os.open", "io.open", "pathlib.Path.lstat")):
    """The system refuses these calls on files of this name."""
    with pytest.MonkeyPatch.context() as patch:
        for call in calls:
            module, _, place = call.partition(".")
            true = operator.attrgetter(place)(importlib.import_module(module))

            def refused(path, *arguments, true=true, **keys):
                if not isinstance(path, int) and Path(path).name == name:
                    raise OSError(number, os.strerror(number), str(path))
                return true(path, *arguments, **keys)

            patch.setattr(call, refused)
        yield


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("name", ["MANIFEST.json", "a.bin", "b.json"])
def test_a_refusal_of_the_system_is_not_damage(tmp_path, number, name):
    folder = make(tmp_path / "c")
    with refusing(number, name), pytest.raises(UnreadableError, match=re.escape(os.strerror(number))) as caught:
        verify_folder(folder)
    assert (caught.value.file, caught.value.reason) == (str(folder / name), os.strerror(number))
    assert not caught.value.is_absent
    assert not isinstance(caught.value, DamagedError)
    assert verify_folder(folder) == 4


def test_an_error_in_the_middle_of_reading_is_not_damage(tmp_path, monkeypatch):
    folder = make(tmp_path / "c")

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", failing)
    with pytest.raises(UnreadableError, match=r"a\.bin: the checkpoint cannot be read \(Input/output error\)"):
        verify_folder(folder)


def test_missing_is_what_a_listed_folder_does_not_have(tmp_path):
    folder = make(tmp_path / "c")
    with refusing(errno.ENOENT, "a.bin"), pytest.raises(UnreadableError) as caught:  # listed, and yet not found
        verify_folder(folder)
    assert not caught.value.is_absent
    with pytest.raises(UnreadableError, match=r"absent: the checkpoint cannot be read \(No such file") as caught:
        verify_folder(tmp_path / "absent")
    assert caught.value.is_absent
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreadableError) as caught:
        verify_folder(tmp_path / "file")
    assert caught.value.is_absent
    (folder / "a.bin").unlink()
    with refusing(errno.EACCES, "c", ["os.listdir"]), pytest.raises(UnreadableError, match="Permission denied") as caught:
        verify_folder(folder)
    assert not caught.value.is_absent
    with pytest.raises(DamagedError, match="the file is missing"):
        verify_folder(folder)


def test_write_synced_never_overwrites(tmp_path):
    assert write_synced(tmp_path / "a", b"abc") == FileSum("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", b"abc")
