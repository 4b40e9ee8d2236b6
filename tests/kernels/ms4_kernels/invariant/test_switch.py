"""On inside, off outside, for one thread only, and cheap to ask."""

from __future__ import annotations

import subprocess
import sys
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


def test_asking_loads_no_kernels():
    code = "import sys, ms4_kernels.invariant; print([name for name in sys.modules if name.startswith('ms4_kernels.native')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
