"""metrics.jsonl: written at once, cut at the resumed step, torn lines dropped."""

import errno
import json
from pathlib import Path

import pytest

from ms4_train.errors import StorageError
from ms4_train.tracking.jsonl import JsonlTracker


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_the_file_at_once(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss": 2.5, "mode": "x"})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "mode": "x"}]
    tracker.summary({"loss": 2.5})
    tracker.close()
    assert lines(tmp_path)[-1] == {"step": 1, "summary": True, "loss": 2.5}


def test_non_finite_values_leave_the_file_readable(tmp_path):
    JsonlTracker(tmp_path).log(1, {"loss": float("nan"), "grad_norm": float("inf")})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None}]


@pytest.mark.parametrize("know_position", [True, False])
@pytest.mark.parametrize("torn", [b"", b'{"step": 5, "lo'])
def test_resume_cuts_later_lines(tmp_path, know_position, torn):
    tracker = JsonlTracker(tmp_path)
    state = {}
    for step in range(1, 5):
        tracker.log(step, {"loss": float(step)})
        if step == 2:
            tracker.log(step, {"eval_loss": 9.0})
            state = tracker.state()
    with (tmp_path / "metrics.jsonl").open("ab") as handle:
        handle.write(torn)
    resumed = JsonlTracker(tmp_path, step=2, resumed=state if know_position else None)
    resumed.log(3, {"loss": 3.25})
    assert [(line["step"], line.get("loss")) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (2, None), (3, 3.25)]


@pytest.mark.parametrize("position", [3, 10**9])
def test_a_position_that_does_not_fit_the_file_is_not_trusted(tmp_path, position):
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 2.0})
    JsonlTracker(tmp_path, step=1, resumed={"metrics_bytes": position})
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_new_run_keeps_the_old_file_aside(tmp_path):
    JsonlTracker(tmp_path).log(1, {"loss": 1.0})
    JsonlTracker(tmp_path).log(1, {"loss": 7.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 7.0}]
    assert json.loads((tmp_path / "metrics.previous.jsonl").read_text())["loss"] == 1.0


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        JsonlTracker(tmp_path / "file" / "run")


def on_a_full_disk(tracker):
    tracker._handle.close()
    tracker._handle = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115


def test_a_full_disk_is_a_storage_error(tmp_path):
    tracker = JsonlTracker(tmp_path)
    on_a_full_disk(tracker)
    with pytest.raises(StorageError, match=r"full: 25 bytes are needed"):
        tracker.log(1, {"loss": 1.0})


def test_lines_wait_for_room_where_the_run_is_to_go_on(tmp_path, caplog):
    tracker = JsonlTracker(tmp_path, go_on=True)
    tracker.log(1, {"loss": 1.0})
    on_a_full_disk(tracker)
    for step in (2, 3):
        tracker.log(step, {"loss": 1.0})
    assert len(caplog.messages) == 1, "one warning until there is room again"
    assert "metrics wait in memory" in caplog.text
    tracker._handle = (tmp_path / "metrics.jsonl").open("ab", buffering=0)
    tracker.log(4, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    on_a_full_disk(tracker)
    tracker.log(5, {"loss": 1.0})
    assert len(caplog.messages) == 2
    with pytest.raises(StorageError):
        tracker.close()


def test_a_line_that_fits_in_part_is_taken_back(tmp_path):
    """A disk that fills up takes what it can before it fails; a torn line in the middle of the file would hide all that follow."""
    tracker = JsonlTracker(tmp_path, go_on=True)
    tracker.log(1, {"loss": 1.0})

    class Filling:
        """The file, with room for ten bytes."""

        room = 10

        def write(self, data):
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = handle.write(data[: self.room])
            self.room -= taken
            return taken

        def __getattr__(self, name):
            return getattr(handle, name)

    disk = Filling()
    handle, tracker._handle = tracker._handle, disk
    tracker.log(2, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    disk.room = 1000
    tracker.log(3, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
