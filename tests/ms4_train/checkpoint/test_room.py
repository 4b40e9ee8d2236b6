"""How much disk a run asks for before it starts. The free space is set; the folders are real."""

import pytest

from ms4_train.checkpoint import room
from ms4_train.errors import DiskFullError

SIZE = 1000


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A run's folder of checkpoints, and how to say what is free beside what is there already."""

    def make(free, *steps):
        for module in ("ms4_train.storage", "ms4_train.checkpoint.room"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda path: free)
        for step in steps:
            (tmp_path / f"step-{step:06d}").mkdir()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("steps", "done", "needed"),
    [
        ((), 0, 2 * SIZE),
        ((10,), 10, SIZE),
        ((10, 20), 20, SIZE),
        ((10, 20), 0, 2 * SIZE),  # an earlier run's, which this one starts over
        ((10, 20), 5, 2 * SIZE),
    ],
)
def test_two_checkpoints_must_fit_and_the_one_gone_on_from_counts(root, steps, done, needed):
    room.require_room(root(needed, *steps), SIZE, done=done, keep=2)
    with pytest.raises(DiskFullError, match=f"{needed:,} bytes are needed, {needed - 1:,} bytes are free, 1 are missing"):
        room.require_room(root(needed - 1), SIZE, done=done, keep=2)


@pytest.mark.parametrize(("steps", "keep", "enough"), [((), 2, 3 * SIZE), ((10,), 2, 2 * SIZE), ((10, 20), 2, SIZE), ((10,), 4, 4 * SIZE)])
def test_the_next_one_is_written_before_the_oldest_goes(root, steps, keep, enough):
    done = steps[-1] if steps else 0
    assert room.require_room(root(enough, *steps), SIZE, done=done, keep=keep) is None
    short = enough - 1
    if short >= max(1, 2 - len(steps)) * SIZE:
        said = room.require_room(root(short), SIZE, done=done, keep=keep)
        assert said is not None
        assert f"save_total_limit={keep} needs {keep + 1}" in said
        assert "1 bytes are missing" in said


def test_a_disk_that_does_not_say_is_trusted(root):
    assert room.require_room(root(None), SIZE, done=0, keep=2) is None
