"""The conformance suite as data: names, limits, and that each check can tell a good outcome from a bad one."""

from __future__ import annotations

import pytest

from ms4_evals.sandbox.base import STATUSES, Outcome
from ms4_evals.sandbox.checks import CHECKS, OPENING_CHECKS


def test_names():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) >= 20
    assert set(OPENING_CHECKS) <= set(names)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_program_can_be_read_and_every_check_can_fail(check):
    compile(check.program, check.name, "exec")
    good = [
        status
        for status in STATUSES
        for code, killer in ((0, None), (139, None), (None, 11), (None, None))
        if check.holds(Outcome(status, code, killer, b"", b"", 0.1, 0.1, 0)) is None
    ]
    assert len(good) <= 1
    assert "sandbox-error" not in good
    assert check.holds(Outcome("exited", 0, None, b"reached", b"", 0.1, 0.1, 0))
