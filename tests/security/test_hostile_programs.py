"""Hostile programs in the sandbox: none passes, none reaches the machine, each ends in exactly one way, nothing is left running.

The same programs are run outside in ``test_hostile_programs_outside.py``, where every one of them succeeds.
"""

from __future__ import annotations

import pytest
from support.hostile_programs import EXPECTED, LIMITS, STDIN, Attack, verdict
from support.hostile_runs import ATTACKS, PROGRAMS, attempt_all
from support.sandboxes import sandbox_or_skip


@pytest.fixture(scope="module")
def attempts():
    with sandbox_or_skip() as sandbox:
        yield attempt_all(sandbox)


def limits_of(program):
    return program.limits if isinstance(program, Attack) else LIMITS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_hostile_program_gets_nowhere(attempts, program):
    found = attempts[0][program.name]
    outcome = found.outcome
    assert found.effects == []
    code = outcome.signal if program.status == "signalled" else outcome.exit_code
    assert (outcome.status, code) == (program.status, program.code), outcome
    assert outcome.wall_seconds <= limits_of(program).wall_seconds + 1.0
    assert len(outcome.stdout) <= limits_of(program).output_bytes
    assert len(outcome.stderr) <= 64 * 1024


CLASSES = {"exited": {"wrong-answer", "runtime-error"}, "signalled": {"runtime-error"}, "wall-time": {"time-limit"}}
CLASSES |= {"cpu-time": {"time-limit"}, "memory": {"memory-limit"}, "output": {"output-limit"}}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_hostile_program_is_graded_as_what_it_did(attempts, program):
    found = verdict(attempts[0][program.name].outcome)
    assert found in CLASSES[program.status]
    if program.status == "exited":
        assert found == ("wrong-answer" if program.code == 0 else "runtime-error")


def test_there_are_enough_of_them():
    assert len(PROGRAMS) >= 70
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    assert len(ATTACKS) >= 50


def test_this_process_does_not_grow(attempts):
    assert attempts[1] < 20 << 20


def test_a_run_is_over_as_soon_as_the_program_is(attempts):
    # Its grandchild would have held the output for a minute.
    assert attempts[0]["grandchild-holds-the-pipe"].seconds < 5
    assert attempts[0]["daemon"].seconds < 5


def test_control_an_honest_program_is_accepted():
    with sandbox_or_skip() as sandbox:
        outcome = sandbox.run({"main.py": b"print(2 * int(input()))"}, ("-I", "main.py"), stdin=STDIN, limits=LIMITS)
    assert verdict(outcome, EXPECTED) == "accepted"
