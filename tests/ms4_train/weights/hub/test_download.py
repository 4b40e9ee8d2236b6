"""The hidden folder that downloads arrive in, and what happens to the other files when one fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.hub_client import both_copies

from ms4_train.errors import StorageError, WeightsError
from ms4_train.weights.hub import download
from ms4_train.weights.hub.download import download_all, remove_staging, staging
from ms4_train.weights.hub.failures import open_hub
from ms4_train.weights.hub.listing import remote_files
from ms4_train.weights.hub.selection import choose

NAME = "owner/model"


def fetch(hub, out, names=None):
    api = open_hub(hub.endpoint, None)
    commit = hub.repos[NAME].branches["main"]
    files = remote_files(api, NAME, commit)
    said = []
    with staging(out):
        wanted = {name: files[name] for name in names or choose(NAME, files, "native")[1]}
        return download_all(api, NAME, commit, wanted, out, said.append), said


def test_each_file_is_told_and_the_largest_is_first(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOADS", 1)
    hub.add(NAME, both_copies())
    sums, said = fetch(hub, tmp_path)
    assert len(sums) == len(said) == 7
    assert said[0].startswith("consolidated-00001-of-00002.safetensors: 300,")
    assert said[-1].endswith("(7 of 7)")


def test_a_damaged_file_does_not_stop_the_others_but_a_refusal_does(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOADS", 1)
    hub.add(NAME, both_copies())
    first = "consolidated-00001-of-00002.safetensors"
    hub.damage[first] = lambda data: b"x" + data[1:]
    with pytest.raises(WeightsError, match="damaged"):
        fetch(hub, tmp_path / "a")
    assert len(hub.sent("GET", "/storage/")) + len(hub.sent("GET", "/resolve/")) == 7
    hub.requests.clear()
    hub.status[first] = (403, "", "no")
    with pytest.raises(WeightsError, match="may not read"):
        fetch(hub, tmp_path / "b")
    assert hub.sent("GET", "/storage/") == hub.sent("GET", "/resolve/") == []


def test_a_link_in_the_way_is_replaced_and_what_it_points_to_is_not_written(hub, tmp_path):
    hub.add(NAME, both_copies())
    (tmp_path / "precious").write_bytes(both_copies()["params.json"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "params.json").symlink_to(tmp_path / "precious")
    fetch(hub, tmp_path / "out", ["params.json"])
    assert not (tmp_path / "out" / "params.json").is_symlink()
    assert (tmp_path / "precious").is_file()


def test_leftovers_of_a_killed_process_are_swept_and_whole_files_stay(tmp_path):
    with staging(tmp_path) as folder:
        begun = folder / ".cache" / "huggingface" / "download"
        begun.mkdir(parents=True)
        (begun / "abc.0123.incomplete").write_bytes(b"x" * 100)
        (folder / "whole").write_bytes(b"x")
    with staging(tmp_path) as folder:
        assert not list(begun.iterdir())
        assert (folder / "whole").exists()
        with pytest.raises(StorageError, match="another pull"), staging(tmp_path):
            pass
    remove_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written():
    with pytest.raises(StorageError, match="cannot be written"), staging(Path("/proc/ms4")):
        pass


WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
from ms4_train.weights.hub import pull
try:
    pull("owner/model", sys.argv[1], endpoint=sys.argv[2])
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_ends_the_process_at_once(hub, tmp_path):
    import threading

    hub.add(NAME, both_copies())
    release = threading.Event()
    hub.damage["params.json"] = lambda data: release.wait(60) and data
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", WAITING, str(tmp_path / "out"), hub.endpoint]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not hub.sent("GET", "/params.json"):
        assert time.monotonic() < deadline, "the download did not begin"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        release.set()
    assert process.returncode == 130
    assert "Traceback" not in errors
