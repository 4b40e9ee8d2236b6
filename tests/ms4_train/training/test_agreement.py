"""One exchange at the end of a step, for signals and for saves."""

import signal

import pytest

from ms4_train.errors import StorageError
from ms4_train.parallel import Mesh
from ms4_train.training.agreement import agree
from ms4_train.training.stop import StopSignals


class Stop:
    def __init__(self, received=0):
        self.received = received


class OtherRank:
    """Two ranks; the other one says this."""

    def __init__(self, number, status):
        self.other = [number, status]
        self.exchanges = 0

    def all_gather_json(self, value):
        self.exchanges += 1
        return [value, self.other]


class Recorder:
    def __init__(self, error=None):
        self.error = error

    def status(self):
        return {"state": "writing"}

    def settle(self, statuses):
        self.statuses = statuses
        if self.error:
            raise self.error


def test_any_ranks_signal_counts_and_every_status_is_told():
    mesh, saver = OtherRank(signal.SIGTERM, {"state": "written"}), Recorder()
    assert agree(Stop(), saver, mesh) == signal.SIGTERM
    assert saver.statuses == [{"state": "writing"}, {"state": "written"}]
    assert mesh.exchanges == 1
    assert agree(Stop(signal.SIGINT), saver, OtherRank(0, None)) == signal.SIGINT
    assert agree(Stop(), saver, OtherRank(0, None)) == 0


def test_without_a_saver_and_without_ranks():
    assert agree(StopSignals(), None, Mesh()) == 0
    assert agree(Stop(signal.SIGTERM), None, Mesh()) == signal.SIGTERM


def test_a_failed_save_is_raised():
    with pytest.raises(StorageError):
        agree(Stop(), Recorder(StorageError("full")), Mesh())
