"""The manifest finds every changed bit, in the files and in itself."""

import json

import pytest

from ms4_train.checkpoint.manifest import FileSum, canonical_json, verify_folder, write_manifest, write_synced
from ms4_train.errors import CheckpointError


def make(folder, step=4):
    folder.mkdir()
    files = {name: write_synced(folder / name, data) for name, data in {"a.bin": b"hello world", "b.json": b"{}"}.items()}
    write_manifest(folder, step, files)
    return folder


def test_whole_folder_verifies(tmp_path):
    folder = make(tmp_path / "c")
    assert verify_folder(folder) == 4
    assert verify_folder(folder, 4) == 4
    (folder / "note.txt").write_text("a file of the user's own")
    assert verify_folder(folder) == 4


def test_every_single_bit_is_covered(tmp_path):
    folder = make(tmp_path / "c")
    flips = 0
    for path in folder.iterdir():
        original = path.read_bytes()
        for position in range(len(original)):
            for bit in range(0, 8, 1 if path.name == "MANIFEST.json" else 3):
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
        (lambda m: m.update(format="other"), "not of format"),
        (lambda m: m.update(version=2), "not of format"),
        (lambda m: m.update(extra=1), "not in the form"),
        (lambda m: m["files"].update({"../a.bin": m["files"]["a.bin"]}), "not a file of this folder"),
        (lambda m: m["files"].update({"absent": m["files"]["a.bin"]}), "missing"),
        (lambda m: m["files"]["a.bin"].update(bytes=1), "11 bytes instead of 1"),
        (lambda m: m["files"]["a.bin"].pop("sha256"), "cannot be read"),
        (lambda m: m.update(files=[]), "cannot be read"),
    ],
)
def test_other_contents_are_refused(tmp_path, change, message):
    folder = make(tmp_path / "c")
    content = json.loads((folder / "MANIFEST.json").read_text())
    change(content)
    (folder / "MANIFEST.json").write_bytes(canonical_json(content))
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_a_link_is_not_a_file(tmp_path):
    folder = make(tmp_path / "c")
    (folder / "a.bin").rename(tmp_path / "elsewhere")
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        verify_folder(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify_folder(tmp_path)


def test_write_synced_never_overwrites(tmp_path):
    assert write_synced(tmp_path / "a", b"abc") == FileSum("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", b"abc")
