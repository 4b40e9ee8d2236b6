"""One sandbox for all tests of a process: opening it proves it."""

from __future__ import annotations

import pytest

from ms4_evals.sandbox.opening import open_sandbox


@pytest.fixture(scope="session")
def sandbox():
    with open_sandbox() as opened:
        yield opened
