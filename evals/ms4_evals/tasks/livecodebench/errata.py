"""Problems of LiveCodeBench that are known to be graded wrongly, so that reports can give scores with and without them.

From the benchmark's own list (LiveCodeBench/LiveCodeBench, ``ERRATA.md``, commit 28fef95), which its grader does not read. AtCoder problems
stand there by id, LeetCode problems by the title in their address.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_errata.py``.
"""

from __future__ import annotations

import re
from typing import Literal

Erratum = Literal["multi-answer", "interactive", "bad-tests"]
"""Why: several answers are right but one is accepted; a judge would have to answer; the tests themselves are wrong."""

ERRATA: dict[str, Erratum] = {
    "abc311_c": "multi-answer",
    "abc326_d": "multi-answer",
    "abc327_b": "multi-answer",
    "abc333_e": "multi-answer",
    "abc343_a": "multi-answer",
    "abc343_e": "multi-answer",
    "abc362_c": "multi-answer",
    "arc185_c": "multi-answer",
    "find-words-containing-character": "multi-answer",
    "find-the-peaks": "multi-answer",
    "generate-binary-strings-without-adjacent-zeros": "multi-answer",
    "abc337_e": "interactive",
    "abc355_e": "interactive",
    "abc350_c": "bad-tests",
    "arc189_a": "bad-tests",
    "apply-operations-to-make-string-empty": "bad-tests",
    "most-frequent-ids": "bad-tests",
}


def erratum_of(question_id: str, title: str) -> Erratum | None:
    """What is wrong with a problem, if anything is known.

    Args:
        question_id: as in the data; decides for AtCoder.
        title: as in the data, ``find-the-peaks`` or ``Find the Peaks``; decides for LeetCode, whose ids there are numbers.
    """
    return ERRATA.get(question_id) or ERRATA.get(re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"))
