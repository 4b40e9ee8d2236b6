"""The listed forms fit the kernels' parameters. That they compile, and without spills, is for the tests of the report."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from ms4_kernels.invariant.specimens import specimens


def test_every_parameter_is_given_once():
    for specimen in specimens():
        assert sorted([*specimen.arguments, *specimen.constants]) == sorted(specimen.kernel.arg_names)
    assert len({specimen.name for specimen in specimens()}) == len(specimens())
    assert {specimen.kernel.__name__ for specimen in specimens() if specimen.representative} == {"gemm_kernel", "sum_kernel"}


def test_control_a_parameter_that_is_missing_is_seen():
    specimen = specimens()[0]
    given = [*specimen.arguments, *specimen.constants][1:]
    assert sorted(given) != sorted(specimen.kernel.arg_names)
