r"""math-verify behind JSON lines: its answers on known forms, and the worker's protocol."""

import json
import subprocess
import sys

import pytest

from ms4_evals.graders import math_verify_worker


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [(r"\boxed{70}", True), (r"\boxed{140/2}", True), (r"\boxed{7 \times 10}", True), (r"\boxed{71}", False), ("no number", False)],
)
def test_judge(answer, is_correct):
    assert math_verify_worker.judge(answer, "70") is is_correct


def test_only_the_end_of_a_very_long_answer_is_looked_at():
    padding = "." * math_verify_worker.MAX_ANSWER_CHARACTERS
    assert not math_verify_worker.judge(r"\boxed{70}" + padding, "70")


def test_the_worker_answers_line_by_line_and_survives_bad_requests():
    requests = [{"answer": "\\boxed{140/2}", "gold": "70"}, {"gold": "70"}, {"answer": "\\boxed{3}", "gold": "70"}]
    done = subprocess.run(
        [sys.executable, "-m", "ms4_evals.graders.math_verify_worker"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert replies == [{"ready": True}, {"is_correct": True}, {"failed": "KeyError"}, {"is_correct": False}]
