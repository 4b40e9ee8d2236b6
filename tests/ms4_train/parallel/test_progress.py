"""Phases are counted, carry their step, and reach one listener."""

import pytest

from ms4_train.parallel import progress


@pytest.fixture(autouse=True)
def _alone():
    earlier = progress.listen(None)
    yield
    progress.listen(earlier)


def test_a_phase_keeps_the_step_until_another_is_named():
    progress.at("forward", 3)
    progress.at("backward")
    assert (progress.here().phase, progress.here().step) == ("backward", 3)
    assert str(progress.here()) == "backward of step 3"


def test_entering_the_same_phase_again_counts():
    progress.at("generation", 0)
    before = progress.here()
    progress.at("generation")
    assert progress.here().count == before.count + 1
    assert str(progress.here()) == "generation"


def test_the_listener_hears_every_entry_and_is_given_back():
    heard = []
    assert progress.listen(heard.append) is None
    progress.at("save", 7)
    assert heard == [progress.here()]
    assert progress.listen(None) == heard.append
    progress.at("save")
    assert len(heard) == 1


def test_an_unknown_phase_is_a_defect():
    with pytest.raises(AssertionError, match="lunch"):
        progress.at("lunch")
