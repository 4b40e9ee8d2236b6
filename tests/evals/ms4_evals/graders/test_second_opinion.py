"""The second opinion: one process for many answers, and a limit that holds."""

import sys
import time

import pytest
from support.eval_client import shared_second_opinion

from ms4_evals.graders.second_opinion import SecondOpinion
from ms4_train.errors import MissingDependencyError

# A worker that answers, hangs, dies or raises as the "answer" tells it to.
PUPPET = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    answer = json.loads(line)["answer"]
    if answer == "hang":
        time.sleep(600)
    if answer == "die":
        sys.exit(1)
    print(json.dumps({"failed": "ValueError"} if answer == "raise" else {"is_correct": answer == "70"}), flush=True)
"""


def puppet(seconds=20.0):
    return SecondOpinion(time_limit_seconds=seconds, command=(sys.executable, "-c", PUPPET))


def test_one_process_serves_many_answers():
    with puppet() as second:
        assert [second.ask(answer, "70") for answer in ("70", "71", "raise", "70")] == ["correct", "wrong", "failed", "correct"]
        assert second.starts == 1


def test_an_answer_that_hangs_is_cut_off_and_the_next_one_is_served():
    with puppet(seconds=0.5) as second:
        start = time.monotonic()
        assert second.ask("hang", "70") == "failed"
        assert time.monotonic() - start < 10
        assert second.ask("70", "70") == "correct"
        assert second.starts == 2


def test_a_worker_that_dies_is_replaced():
    with puppet() as second:
        assert second.ask("die", "70") == "failed"
        assert second.ask("70", "70") == "correct"


def test_no_process_is_left():
    with puppet() as second:
        second.ask("70", "70")
        process = second._process
        assert process is not None
    assert process.poll() is not None


@pytest.mark.parametrize("script", ["print('{\"ready\": false}')", "pass"])
def test_a_worker_that_cannot_start_is_an_error(script):
    with pytest.raises(MissingDependencyError), SecondOpinion(command=(sys.executable, "-c", script)) as second:
        second.ask("70", "70")


def test_math_verify_itself():
    r"""A form on which the two graders differ: the product is 70 for math-verify only, the residue for the integer check only."""
    second = shared_second_opinion()
    assert second.ask(r"\boxed{7 \times 10}", "70") == "correct"
    assert second.ask(r"\boxed{70 \pmod{1000}}", "70") == "wrong"
