"""Several trackers behind one."""

import pytest

from ms4_train.tracking.base import Trackers


class Recorder:
    def __init__(self, name, fails=False):
        self.name, self.fails, self.calls = name, fails, []

    def log(self, step, metrics):
        self.calls.append((step, dict(metrics)))

    def summary(self, metrics):
        self.calls.append(dict(metrics))

    def state(self):
        return {self.name: len(self.calls)}

    def close(self):
        self.calls.append("closed")
        if self.fails:
            raise RuntimeError(self.name)


def test_every_tracker_gets_every_call():
    first, second = Recorder("a"), Recorder("b")
    trackers = Trackers([first, second])
    trackers.log(3, {"loss": 1.0})
    trackers.summary({"loss": 0.5})
    assert trackers.state() == {"a": 2, "b": 2}
    trackers.close()
    assert first.calls == second.calls == [(3, {"loss": 1.0}), {"loss": 0.5}, "closed"]


def test_one_that_fails_to_close_does_not_keep_the_others_open():
    first, second = Recorder("a"), Recorder("b", fails=True)
    trackers = Trackers([first, second])
    with pytest.raises(RuntimeError, match="b"):
        trackers.close()
    assert first.calls == ["closed"]
    trackers.close()
    assert first.calls == ["closed"]


def test_no_trackers_do_nothing():
    trackers = Trackers()
    trackers.log(1, {})
    trackers.close()
    assert trackers.state() == {}
