"""Pulling with the real huggingface_hub client from a hub on this machine: whole, interrupted, damaged, hostile."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.hub_client import both_copies, safetensors_bytes
from support.hub_server import TOKEN

from ms4_train import storage
from ms4_train.errors import StorageError, WeightsError
from ms4_train.weights.checksums import SUMS_FILE, check_sums, read_sums
from ms4_train.weights.hub import pull

NAME = "owner/model"
NATIVE = {
    "README.md",
    "SYSTEM_PROMPT.txt",
    "params.json",
    "consolidated-00001-of-00002.safetensors",
    "consolidated-00002-of-00002.safetensors",
    "consolidated.safetensors.index.json",
    "tekken.json",
}
HF = {"README.md", "SYSTEM_PROMPT.txt", "tekken.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
HF |= {"chat_template.jinja"}
OWN = {SUMS_FILE, "hub.json"}
SHARD = "consolidated-00001-of-00002.safetensors"


def flip(data):
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def get(hub, out, **options):
    said = []
    result = pull(NAME, out, endpoint=hub.endpoint, say=said.append, **options)
    return result, said


def downloads(hub):
    """Names of the files whose bytes were sent."""
    return sorted({path.rpartition("/")[2] for path in hub.sent("GET", "/storage/") + hub.sent("GET", "/resolve/")})


@pytest.mark.parametrize(
    ("layout", "taken", "wanted"),
    [("auto", "native", NATIVE), ("native", "native", NATIVE), ("hf", "hf", HF), ("all", "all", NATIVE | HF)],
)
def test_the_copy_asked_for_arrives_byte_for_byte_and_nothing_else_is_asked_for(hub, tmp_path, layout, taken, wanted):
    commit = hub.add(NAME, both_copies())
    result, said = get(hub, tmp_path / "out", layout=layout)
    assert (result.commit, result.layouts, set(result.files)) == (commit, (taken,), wanted)
    assert names(tmp_path / "out") == wanted | OWN
    assert {name: (tmp_path / "out" / name).read_bytes() for name in wanted} == {name: both_copies()[name] for name in wanted}
    assert read_sums(tmp_path / "out") == {name: hashlib.sha256(both_copies()[name]).hexdigest() for name in wanted}
    assert set(downloads(hub)) == wanted
    assert said[0] == f"{NAME}: commit {commit}"
    assert result.downloaded_bytes == sum(len(both_copies()[name]) for name in wanted)
    assert json.loads((tmp_path / "out" / "hub.json").read_text())["commit"] == commit


def test_a_revision_is_resolved_to_its_commit_and_a_missing_one_is_warned_about(hub, tmp_path, caplog):
    old = hub.add(NAME, both_copies())
    new = hub.add(NAME, both_copies() | {"params.json": b'{"dim": 8}'})
    hub.add(NAME, both_copies() | {"params.json": b'{"dim": 16}'}, branch="v2")
    assert get(hub, tmp_path / "a")[0].commit == new
    assert f"--revision {new}" in caplog.text
    caplog.clear()
    assert get(hub, tmp_path / "b", revision=old)[0].commit == old
    assert (tmp_path / "b" / "params.json").read_bytes() == b'{"dim": 4}'
    get(hub, tmp_path / "c", revision="v2")
    assert (tmp_path / "c" / "params.json").read_bytes() == b'{"dim": 16}'
    assert caplog.text == ""


def test_a_long_listing_comes_in_pages(hub, tmp_path):
    hub.page = 3
    hub.add(NAME, both_copies())
    assert set(get(hub, tmp_path / "out")[0].files) == NATIVE


def test_a_complete_folder_is_not_downloaded_again(hub, tmp_path):
    commit = hub.add(NAME, both_copies())
    get(hub, tmp_path / "out")
    hub.requests.clear()
    result, said = get(hub, tmp_path / "out")
    assert downloads(hub) == []
    assert result.downloaded_bytes == 0
    assert f"already holds {NAME} at {commit}" in said[-1]
    assert "sizes checked" in said[-1]
    hub.requests.clear()
    get(hub, tmp_path / "out", revision=commit, layout="native", check=True)
    assert hub.requests == []  # a pinned, complete folder needs no network
    (tmp_path / "out" / SHARD).write_bytes(flip(both_copies()[SHARD]))
    get(hub, tmp_path / "out", revision=commit)  # sizes alone cannot see it
    with pytest.raises(WeightsError, match="its SHA-256 differs") as caught:
        get(hub, tmp_path / "out", revision=commit, check=True)
    assert caught.value.file == str(tmp_path / "out" / SHARD)


def test_another_copy_of_the_same_commit_is_added(hub, tmp_path):
    hub.add(NAME, both_copies())
    get(hub, tmp_path / "out")
    hub.requests.clear()
    result, _ = get(hub, tmp_path / "out", layout="hf")
    assert set(downloads(hub)) == HF - NATIVE
    assert result.layouts == ("native", "hf")
    assert set(check_sums(tmp_path / "out")) == NATIVE | HF


def test_a_lost_file_of_a_complete_folder_is_fetched_again_and_a_changed_one_is_not_touched(hub, tmp_path):
    hub.add(NAME, both_copies())
    get(hub, tmp_path / "out")
    (tmp_path / "out" / "params.json").unlink()
    hub.requests.clear()
    get(hub, tmp_path / "out")
    assert downloads(hub) == ["params.json"]
    (tmp_path / "out" / "params.json").write_text('{"dim": 4, "mine": 1}')
    with pytest.raises(WeightsError, match=r"changed after it was pulled: it has 21 bytes instead of 10\."):
        get(hub, tmp_path / "out")
    assert "mine" in (tmp_path / "out" / "params.json").read_text()
    (tmp_path / "out" / SHARD).unlink()  # nor is a sum written for the changed one when another file is fetched
    with pytest.raises(WeightsError, match="changed after it was pulled"):
        get(hub, tmp_path / "out")


def test_another_commit_or_repository_is_refused_and_nothing_is_lost(hub, tmp_path):
    old = hub.add(NAME, both_copies())
    get(hub, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    hub.add(NAME, both_copies() | {"params.json": b"{}"})
    hub.add("owner/other", both_copies())
    with pytest.raises(WeightsError, match=f"--revision {old}"):
        get(hub, tmp_path / "out")
    with pytest.raises(WeightsError, match="owner/other"):
        pull("owner/other", tmp_path / "out", endpoint=hub.endpoint)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("content", ["notes.txt", "params.json", ".hidden"])
def test_a_folder_with_other_content_is_refused(hub, tmp_path, content):
    hub.add(NAME, both_copies())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / content).write_text("mine")
    with pytest.raises(StorageError, match=content):
        get(hub, tmp_path / "out")
    assert (tmp_path / "out" / content).read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="not a folder"):
        get(hub, tmp_path / "file")


@pytest.mark.parametrize("name", [SHARD, "params.json"], ids=["large, by SHA-256", "small, by git's id"])
def test_a_flipped_bit_is_found_and_only_that_file_is_downloaded_again(hub, tmp_path, name):
    hub.add(NAME, both_copies())
    hub.damage[name] = flip
    with pytest.raises(WeightsError, match="another sum than the hub gives") as caught:
        get(hub, tmp_path / "out")
    assert caught.value.file == str(tmp_path / "out" / name)
    assert names(tmp_path / "out") == NATIVE - {name} | {".pull"}
    assert list((tmp_path / "out" / ".pull").glob("*.safetensors")) == []
    del hub.damage[name]
    hub.requests.clear()
    get(hub, tmp_path / "out")
    assert downloads(hub) == [name]
    assert names(tmp_path / "out") == NATIVE | OWN


def test_a_file_that_was_damaged_after_it_arrived_is_downloaded_again_when_the_pull_goes_on(hub, tmp_path):
    hub.add(NAME, both_copies())
    hub.damage["params.json"] = flip
    with pytest.raises(WeightsError):
        get(hub, tmp_path / "out")
    (tmp_path / "out" / SHARD).write_bytes(flip(both_copies()[SHARD]))
    hub.damage.clear()
    hub.requests.clear()
    get(hub, tmp_path / "out")
    assert downloads(hub) == [SHARD, "params.json"]
    assert (tmp_path / "out" / SHARD).read_bytes() == both_copies()[SHARD]


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"], ids=["short", "long"])
@pytest.mark.parametrize("name", [SHARD, "params.json"])
def test_a_wrong_size_is_found(hub, tmp_path, name, change):
    hub.add(NAME, both_copies())
    hub.damage[name] = change
    with pytest.raises(WeightsError, match=r"another size than announced|bytes instead of"):
        get(hub, tmp_path / "out")
    assert not {name, SUMS_FILE, "hub.json"} & names(tmp_path / "out")


def test_several_damaged_files_are_counted(hub, tmp_path):
    hub.add(NAME, both_copies())
    hub.damage = {SHARD: flip, "params.json": flip, "tekken.json": flip}
    with pytest.raises(WeightsError, match=r"\(and 2 more\)"):
        get(hub, tmp_path / "out")


def test_a_cut_connection_goes_on_in_the_middle_of_the_file(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.add(NAME, both_copies())
    hub.cut[SHARD] = [100_000, 50_000]
    get(hub, tmp_path / "out")
    assert len([path for path in hub.sent("GET", "/storage/") if path.endswith(SHARD)]) == 3
    assert (tmp_path / "out" / SHARD).read_bytes() == both_copies()[SHARD]


def test_a_hub_that_goes_away_leaves_what_arrived_and_the_next_pull_fetches_the_rest(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.add(NAME, both_copies())
    hub.cut[SHARD] = [0] * 20
    with pytest.raises(WeightsError, match="cannot be reached"):
        get(hub, tmp_path / "out")
    arrived = names(tmp_path / "out") - {".pull"}
    assert SHARD not in arrived
    assert SUMS_FILE not in arrived
    hub.cut.clear()
    hub.requests.clear()
    get(hub, tmp_path / "out")
    assert set(downloads(hub)) == NATIVE - arrived
    check_sums(tmp_path / "out")


KILLED = """
import sys
from ms4_train.weights.hub import pull
pull("owner/model", sys.argv[1], endpoint=sys.argv[2])
"""


def test_a_killed_pull_goes_on(hub, tmp_path):
    """The process dies while the second shard is on its way: the first is kept, what was begun is swept."""
    import threading

    hub.add(NAME, both_copies())
    release = threading.Event()
    other = "consolidated-00002-of-00002.safetensors"
    hub.damage[other] = lambda data: release.wait(60) and data
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out"), hub.endpoint], env=environment)
    deadline = time.monotonic() + 60
    while names(tmp_path / "out") if (tmp_path / "out").is_dir() else True:
        begun = list((tmp_path / "out").glob(".pull/.cache/huggingface/download/*.incomplete"))
        if begun and (tmp_path / "out").is_dir() and names(tmp_path / "out") == NATIVE - {other} | {".pull"}:
            break
        assert time.monotonic() < deadline, "the files did not arrive"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    release.set()
    hub.damage.clear()
    hub.requests.clear()
    get(hub, tmp_path / "out")
    assert downloads(hub) == [other]
    assert names(tmp_path / "out") == NATIVE | OWN
    check_sums(tmp_path / "out")


def test_an_unfinished_pull_of_another_commit_is_refused(hub, tmp_path):
    old = hub.add(NAME, both_copies())
    hub.damage["params.json"] = flip
    with pytest.raises(WeightsError):
        get(hub, tmp_path / "out")
    hub.damage.clear()
    hub.add(NAME, both_copies() | {"params.json": b"{}"})
    with pytest.raises(WeightsError, match=f"unfinished pull of {NAME} at {old}"):
        get(hub, tmp_path / "out")
    assert get(hub, tmp_path / "out", revision=old)[0].commit == old


def test_a_damaged_copy_in_the_cache_of_huggingface_hub_is_not_taken(hub, tmp_path, caplog):
    from huggingface_hub import constants, hf_hub_download

    commit = hub.add(NAME, both_copies())
    cached = Path(hf_hub_download(NAME, SHARD, revision=commit, endpoint=hub.endpoint, cache_dir=constants.HF_HUB_CACHE))
    cached.resolve().write_bytes(flip(both_copies()[SHARD]))
    get(hub, tmp_path / "out", revision=commit)
    assert (tmp_path / "out" / SHARD).read_bytes() == both_copies()[SHARD]
    assert "damaged" in caplog.text


def test_a_full_disk_is_found_before_anything_is_written(hub, tmp_path, monkeypatch):
    hub.add(NAME, both_copies())
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(StorageError, match=r"1,000,000 bytes are free"):
        get(hub, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert downloads(hub) == []


def test_a_disk_that_fills_up_in_the_middle_is_told_in_bytes(hub, tmp_path, monkeypatch):
    hub.add(NAME, both_copies())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(StorageError, match="the disk is full"):
        get(hub, tmp_path / "out")


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(hub, tmp_path):
    hub.add(NAME, both_copies())
    _, said = get(hub, tmp_path / "out", dry_run=True)
    total = sum(len(both_copies()[name]) for name in NATIVE)
    assert f"7 of 7 files, {total:,} bytes, to download" in said[-1]
    assert not (tmp_path / "out").exists()
    assert downloads(hub) == []


@pytest.mark.parametrize(
    "name", ["../evil.json", "a/../../evil", "/etc/evil", "c:evil", "a\\b.json", "a\nb.json", "a\x1b[2Jb", "", "\ud800"]
)
def test_hostile_names_end_the_pull_before_anything_is_written(hub, tmp_path, name):
    hub.add(NAME, both_copies())
    hub.listing = lambda entries: [*entries, {"type": "file", "path": name, "size": 1, "oid": "0" * 40}]
    with pytest.raises(WeightsError, match="not a plain path") as caught:
        get(hub, tmp_path / "out", layout="native")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []
    assert downloads(hub) == []


def test_a_private_repository_needs_a_token_which_goes_to_no_other_host(hub, tmp_path):
    hub.add(NAME, both_copies(), private=True)
    with pytest.raises(WeightsError, match=r"private .*hf auth login.*HF_TOKEN"):
        get(hub, tmp_path / "out")
    get(hub, tmp_path / "out", token=TOKEN)
    assert hub.sent("GET", "/storage/")
    assert {authorization for _, path, authorization in hub.requests if path.startswith("/storage/")} == {None}


def test_pulling_an_adapter(hub, tmp_path):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors_bytes(100), "README.md": b"", "optimizer.pt": b"\x80"}
    hub.add(NAME, files)
    result, _ = get(hub, tmp_path / "out")
    assert result.layouts == ("adapter",)
    assert set(result.files) == set(files) - {"optimizer.pt"}


def test_two_pulls_into_one_folder_do_not_meet(hub, tmp_path):
    from ms4_train.weights.hub.download import staging

    hub.add(NAME, both_copies())
    with staging(tmp_path / "out"), pytest.raises(StorageError, match="another pull"):
        get(hub, tmp_path / "out")
    get(hub, tmp_path / "out")
