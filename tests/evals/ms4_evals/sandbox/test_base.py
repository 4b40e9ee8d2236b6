"""The types that graders and sandboxes share."""

from __future__ import annotations

import dataclasses

import pytest

from ms4_evals.sandbox.base import STATUSES, Limits, Outcome


def test_limits_hold_for_what_contests_ask():
    limits = Limits()
    assert (limits.wall_seconds, limits.cpu_seconds, limits.memory_bytes) == (10.0, 6.0, 1 << 30)
    assert (limits.processes, limits.open_files) == (16, 64)
    assert (limits.file_bytes, limits.output_bytes) == (32 << 20, 8 << 20)


def test_statuses_are_distinct_and_outcomes_do_not_change():
    assert len(set(STATUSES)) == len(STATUSES) == 7
    outcome = Outcome("exited", 0, None, b"", b"", 0.1, 0.1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.status = "memory"
