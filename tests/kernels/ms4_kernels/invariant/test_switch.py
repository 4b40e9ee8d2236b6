"""On inside, off outside, for one thread only."""

from __future__ import annotations

import threading

import pytest

from ms4_kernels.invariant import batch_invariant, is_on
from ms4_kernels.invariant.switch import switched_on


def test_on_inside_also_when_nested_and_off_after_an_error():
    assert not is_on()
    with switched_on():
        with switched_on():
            assert is_on()
        assert is_on()
    assert not is_on()
    with pytest.raises(KeyError), batch_invariant():
        {}[is_on()]
    assert not is_on()


def test_other_threads_are_not_concerned():
    seen = []
    with switched_on():
        thread = threading.Thread(target=lambda: seen.append(is_on()))
        thread.start()
        thread.join()
    assert seen == [False]
