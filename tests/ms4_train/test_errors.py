"""Errors read as one sentence with place and fix, and every kind has its own code."""

from __future__ import annotations

import pytest

from ms4_train import errors
from ms4_train.errors import ConfigError, MS4Error, RowError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MS4Error)]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "it broke."),
        ({"file": "a.yaml"}, "a.yaml: it broke."),
        ({"file": "a.yaml", "line": 3}, "a.yaml:3: it broke."),
        ({"line": 3}, "line 3: it broke."),
        ({"key": "x.y"}, "x.y: it broke."),
        ({"file": "a.yaml", "line": 3, "key": "x.y", "fix": "mend it."}, "a.yaml:3: x.y: it broke. Fix: mend it."),
    ],
)
def test_text(parts, text):
    error = ConfigError("it broke.", **parts)
    assert str(error) == text
    assert error.exit_code == 2


def test_codes_are_stable_and_distinct():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) >= 14


def test_faults_of_the_machine_have_exit_codes_of_their_own():
    assert {kind: kind.exit_code for kind in KINDS if kind.exit_code != 2} == {errors.DiskFullError: 75, errors.RankLostError: 76}
    assert issubclass(errors.DiskFullError, errors.StorageError)
    assert issubclass(errors.RankLostError, errors.ParallelError)


def test_a_row_error_is_a_data_error_with_the_name_of_its_fault():
    error = RowError("two user turns in a row.", row_code="role-order", file="rows.jsonl", line=7)
    assert isinstance(error, errors.DataError)
    assert error.row_code == "role-order"
    assert str(error) == "rows.jsonl:7: two user turns in a row."
