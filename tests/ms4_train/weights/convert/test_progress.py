"""Progress counts to the total, goes to a callable or to a bar on a terminal, and to nobody otherwise."""

import io
import os
import pty
import sys
import threading

from support import layouts

from ms4_train.weights.checksums import folder_sums, write_sums
from ms4_train.weights.convert import convert
from ms4_train.weights.convert.progress import Meter, reporting


def test_a_conversion_counts_checking_and_converting_to_the_end(tmp_path):
    layouts.hf_folder(tmp_path / "hf", shards=2)
    write_sums(tmp_path / "hf", folder_sums(tmp_path / "hf", [path.name for path in (tmp_path / "hf").iterdir()]))
    calls = []
    report = convert(tmp_path / "hf", tmp_path / "out", to="native", progress=lambda *call: calls.append(call))
    phases = [phase for phase, _, _ in calls]
    assert phases == sorted(phases)  # "checking" before "converting"
    assert set(phases) == {"checking", "converting"}
    assert calls[-1] == ("converting", report.target_bytes, report.target_bytes)
    unread = ("SHA256SUMS", "model.safetensors.index.json")
    read = sum(path.stat().st_size for path in (tmp_path / "hf").iterdir() if path.name not in unread)
    assert [call for call in calls if call[0] == "checking"][-1] == ("checking", read, read)


def test_a_meter_speaks_rarely_one_at_a_time_and_at_the_end():
    calls, inside = [], []

    def callback(phase, done, total):
        inside.append(1)
        assert len(inside) == 1
        calls.append(done)
        inside.pop()

    meter = Meter(callback, "x", 4000)
    threads = [threading.Thread(target=lambda: [meter.add(1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls[-1] == 4000
    assert len(calls) < 100
    assert calls == sorted(calls)


def test_no_terminal_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with reporting("auto") as callback:
        assert callback is None
    with reporting(None) as callback:
        assert callback is None


def test_a_bar_on_a_terminal(monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with reporting("auto") as callback:
            assert callback is not None
            callback("checking", 1, 10)
            callback("converting", 5_000_000, 10_000_000)
    shown = ""
    while "converting" not in shown:  # a read gives what was written so far, or fails at the end
        shown += os.read(leader, 100_000).decode()
    os.close(leader)
    assert "converting" in shown
    assert "MB" in shown
