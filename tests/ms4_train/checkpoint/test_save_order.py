"""What reaches the disk before what: a checkpoint is named only when every byte of it survives a power cut."""

import os
from pathlib import Path

import pytest
from support.run_state import save_now, small_engine

from ms4_train.storage import atomic_write_bytes


@pytest.fixture
def events(monkeypatch):
    """(call, path) of every open for writing, write, fsync and rename of this process, in order."""
    found = []
    true_open, true_write, true_fsync, true_rename, true_replace = os.open, os.write, os.fsync, Path.rename, Path.replace

    def path_of(descriptor):
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def opened(path, flags, *rest, **keys):
        if flags & os.O_CREAT:
            found.append(("create", Path(path).resolve()))
        return true_open(path, flags, *rest, **keys)

    def written(descriptor, data):
        found.append(("write", path_of(descriptor)))
        return true_write(descriptor, data)

    def synced(descriptor):
        found.append(("fsync", path_of(descriptor)))
        true_fsync(descriptor)

    def renamed(true):
        def rename(path, target):
            found.append(("rename", Path(path).resolve()))
            return true(path, target)

        return rename

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed(true_rename))
    monkeypatch.setattr(Path, "replace", renamed(true_replace))
    return found


def require_safe_order(events, named: Path, folder: Path):
    """Every file under ``named`` is flushed after its last write and before the rename; so are its folder and, after it, the one around."""
    commit = events.index(("rename", named))
    files = {path for call, path in events[:commit] if call == "create" and (path == named or named in path.parents)}
    assert files
    for path in files:
        last_write = max(index for index, event in enumerate(events) if event == ("write", path))
        assert ("fsync", path) in events[last_write:commit], f"{path.name} is not flushed before the rename"
        assert events[commit:].count(("write", path)) == 0
    if len(files) > 1:
        assert ("fsync", named) in events[max(events.index(("create", path)) for path in files) : commit]
    assert ("fsync", folder) in events[commit:]
    if folder.name == "checkpoints":  # of a first save: it is new in its own folder
        assert ("fsync", folder.parent) in events[:commit]


def test_a_checkpoint_is_named_when_all_of_it_is_on_the_disk(tmp_path, events):
    root = tmp_path.resolve() / "checkpoints"
    save_now(root, small_engine(), 1)
    require_safe_order(events, root / ".tmp-step-000001", root)
    creates = [path.name for call, path in events if call == "create"]
    assert creates[-1] == "MANIFEST.json"
    manifest = events.index(("create", root / ".tmp-step-000001" / "MANIFEST.json"))
    for name in creates[:-1]:
        assert ("fsync", root / ".tmp-step-000001" / name) in events[:manifest], "the manifest vouches for files that are on the disk"


def test_a_single_file_is_named_when_it_is_on_the_disk(tmp_path, events):
    atomic_write_bytes(tmp_path / "a.json", b"{}")
    (temporary,) = {path for call, path in events if call == "create"}
    require_safe_order(events, temporary, tmp_path.resolve())


def test_without_the_flush_the_order_is_found_wrong(tmp_path, events):
    """The negative control: the same events without the flush of any one file or folder."""
    root = tmp_path.resolve() / "checkpoints"
    save_now(root, small_engine(), 1)
    flushed = {path for call, path in events if call == "fsync"}
    assert len(flushed) >= 5
    for path in flushed:
        with pytest.raises(AssertionError):
            require_safe_order([event for event in events if event != ("fsync", path)], root / ".tmp-step-000001", root)
