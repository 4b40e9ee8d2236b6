"""The sandbox that the graders' tests share: the one of this machine, opened once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ms4_evals.sandbox.base import Sandbox
from ms4_evals.sandbox.opening import open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox() as opened:
        yield opened
