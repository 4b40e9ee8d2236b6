"""The sandbox that the graders' tests share: the one of this machine, opened once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.sandboxes import sandbox_or_skip

from ms4_evals.sandbox.base import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip() as opened:
        yield opened
