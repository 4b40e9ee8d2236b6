"""Listings of a hub: commits, names, sizes, sums; and local files compared with them, with git as the oracle for its ids."""

import hashlib
import shutil
import subprocess

import pytest
from support.hub_client import both_copies

from ms4_train.errors import WeightsError
from ms4_train.weights.hub import listing
from ms4_train.weights.hub.failures import open_hub
from ms4_train.weights.hub.listing import RemoteFile, is_commit, is_safe_path, local_content, remote_files, resolve_commit, total_bytes

NAME = "owner/model"
GOOD = {"type": "file", "path": "a.json", "size": 2, "oid": "0" * 40}
LFS = {"oid": "0" * 64, "size": 2, "pointerSize": 130}


def listed(hub, entry):
    commit = hub.add(NAME, both_copies())
    hub.listing = lambda entries: [entry]
    return remote_files(open_hub(hub.endpoint, None), NAME, commit)


def test_every_file_with_its_size_and_sum(hub):
    commit = hub.add(NAME, both_copies())
    api = open_hub(hub.endpoint, None)
    assert resolve_commit(api, NAME, None) == (commit, False)
    files = remote_files(api, NAME, commit)
    assert {name: file.size for name, file in files.items()} == {name: len(data) for name, data in both_copies().items()}
    assert total_bytes(files.values()) == sum(map(len, both_copies().values()))
    data = both_copies()["model.safetensors"]
    assert files["model.safetensors"].sha256 == hashlib.sha256(data).hexdigest()
    assert files["params.json"].sha256 is None


def test_a_local_file_is_told_from_one_with_a_changed_bit(tmp_path):
    data = b'{"dim": 4}'
    (tmp_path / "f").write_bytes(data)
    content = local_content(tmp_path / "f")
    assert content.sha256 == hashlib.sha256(data).hexdigest()
    if git := shutil.which("git"):
        told = subprocess.run([git, "hash-object", "--stdin"], input=data, capture_output=True, check=True).stdout.decode().strip()
        assert content.blob_id == told
    small, large = RemoteFile("f", 10, content.blob_id), RemoteFile("f", 10, "0" * 40, content.sha256)
    assert content.is_that_of(small)
    assert content.is_that_of(large)
    quick = local_content(tmp_path / "f", with_git_id=False)
    assert quick.is_that_of(large)
    assert not quick.is_that_of(small)  # unknown is not equal
    (tmp_path / "f").write_bytes(b'{"dim": 5}')
    assert not local_content(tmp_path / "f").is_that_of(small)
    assert not local_content(tmp_path / "f").is_that_of(large)
    assert not content.is_that_of(RemoteFile("f", 11, content.blob_id))


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": "2"},
        {"size": None},
        {"size": True},
        {"oid": "zz"},
        {"oid": None},
        {"lfs": {**LFS, "oid": "0" * 63}},
        {"lfs": {**LFS, "size": 3}},
        {"lfs": {"oid": "0" * 64}},
        {"lfs": "x"},
        {"path": None},
        {"path": 3},
    ],
)
def test_malformed_entries_are_refused(hub, change):
    with pytest.raises(WeightsError) as caught:
        listed(hub, GOOD | change)
    assert caught.value.key == NAME


def test_control_the_entry_itself_is_good(hub):
    assert listed(hub, GOOD) == {"a.json": RemoteFile("a.json", 2, "0" * 40)}
    assert listed(hub, GOOD | {"lfs": LFS})["a.json"].sha256 == "0" * 64
    assert listed(hub, {"type": "directory", "path": "d", "oid": "0" * 40}) == {}


def test_an_entry_without_a_size_and_a_listing_that_is_no_list(hub):
    with pytest.raises(WeightsError, match="malformed"):
        listed(hub, {"type": "file", "path": "a"})
    with pytest.raises(WeightsError, match="malformed"):
        listed(hub, "text")


def test_a_name_that_comes_twice_and_a_listing_without_end(hub, monkeypatch):
    commit = hub.add(NAME, both_copies())
    api = open_hub(hub.endpoint, None)
    hub.listing = lambda entries: [GOOD, GOOD]
    with pytest.raises(WeightsError, match="twice"):
        remote_files(api, NAME, commit)
    monkeypatch.setattr(listing, "MAX_FILES", 5)
    hub.listing = lambda entries: entries
    with pytest.raises(WeightsError, match="more than 5 files"):
        remote_files(api, NAME, commit)


@pytest.mark.parametrize("name", ["a", "a/b.json", "a b", "é", "..a", "a..b", "xy:z"])
def test_plain_paths(name):
    assert is_safe_path(name)


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "a\\b", "a\0", "a\nb", "C:a", "d/c:a", "\u202ea", "a" * 300]
)
def test_paths_that_are_refused(name):
    assert not is_safe_path(name)


def test_commits():
    assert is_commit("0" * 40)
    assert not any(is_commit(text) for text in (None, "main", "0" * 39, "0" * 41, "A" * 40, "0" * 40 + "\n"))


@pytest.mark.parametrize("sha", ["../../evil", "main", "", None])
def test_a_hub_that_gives_no_commit(hub, monkeypatch, sha):
    commit = hub.add(NAME, both_copies())
    repo = hub.repos[NAME]
    repo.commits[sha] = repo.commits[commit]
    repo.branches["main"] = sha
    monkeypatch.setattr(type(repo), "find", lambda self, revision: sha if sha is not None else "null")
    repo.commits["null"] = repo.commits[commit]
    with pytest.raises(WeightsError, match="no commit"):
        resolve_commit(open_hub(hub.endpoint, None), NAME, None)
