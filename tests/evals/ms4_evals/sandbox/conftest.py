"""One sandbox for all tests of a process: opening it proves it. Where there is none, all tests of this folder are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.sandboxes import sandbox_or_skip

from ms4_evals.sandbox.base import Sandbox


@pytest.fixture(scope="session", autouse=True)
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip() as opened:
        yield opened
