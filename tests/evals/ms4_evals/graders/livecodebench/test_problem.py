"""A problem without tests is refused when it is made."""

from __future__ import annotations

import pytest

from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_train.errors import EvaluationError


def test_a_problem_without_tests_is_refused_by_name():
    with pytest.raises(EvaluationError, match=r"abc301_a.*without tests.*Fix:"):
        CodeProblem("abc301_a", None, ())


def test_control_one_test_is_enough():
    assert CodeProblem("abc301_a", None, (CodeTest("", ""),)).tests[0] == CodeTest("", "")
