"""LiveCodeBench's recorded verdicts on one model's code for 880 problems, as problems for a grader.

Of each row there are the code, the official verdict, the public tests that could be parsed from the statement, and, of some that
failed, the test that failed. The verdicts are from an older grader than commit 28fef95, and some are not true: see
``tests/evals/ms4_evals/graders/livecodebench/test_strict_recorded.py``.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest

FILE = Path("livecodebench") / "crosscheck_o1_mini.json.gz"
CLASSES = {-2: "WA", -3: "TLE", -4: "RE"}


@dataclass(frozen=True)
class Recorded:
    """One row.

    Attributes:
        problem_id: ``abc301_a``.
        code: the candidate.
        passed: the official verdict.
        failing_class: of the recorded failing test; empty without one.
        public: the problem with its parsed public tests; None where none could be parsed.
        failing: the problem with the recorded failing test only; None where there is none.
    """

    problem_id: str
    code: str
    passed: bool
    failing_class: str
    public: CodeProblem | None
    failing: CodeProblem | None


def recorded_verdicts(data_folder: Path) -> list[Recorded]:
    """All rows, in the file's order."""
    with gzip.open(data_folder / FILE) as stream:
        return [_recorded(row) for row in json.load(stream)]


def _recorded(row: dict[str, Any]) -> Recorded:
    def problem(tests: list[dict[str, str]]) -> CodeProblem | None:
        if not tests:
            return None
        return CodeProblem(row["question_id"], row["func_name"], tuple(CodeTest(test["input"], test["output"]) for test in tests))

    failing = row["recorded_failing_test"]
    return Recorded(
        problem_id=row["question_id"],
        code=row["code"],
        passed=row["official_pass"],
        failing_class=CLASSES[row["official_error_code"]] if failing else "",
        public=problem(row["public_tests"]),
        failing=problem([failing] if failing else []),
    )
