"""The negative control: outside the sandbox every hostile program does what it wants, on targets made for it and with small bombs."""

from __future__ import annotations

import pytest
from support.hostile_programs_cheats import CHEATS
from support.hostile_runs import ATTACKS, naive_verdict, outside_all

# Kernels may be built or set so that ordinary programs cannot do these either.
MAY_BE_REFUSED = {"performance-events", "bpf", "calls-of-32-bit", "mounts-in-new-namespaces", "chroot", "ptrace"}


@pytest.fixture(scope="module")
def results():
    return outside_all()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_outside_an_attack_succeeds(results, attack):
    if attack.name in MAY_BE_REFUSED and not results[attack.name]:
        pytest.skip("this machine refuses it to everybody")
    assert results[attack.name]


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_a_grader_in_the_same_process_is_fooled(cheat):
    assert naive_verdict(cheat.name, cheat.source)


def test_control_a_grader_in_the_same_process_does_say_no():
    assert not naive_verdict("wrong", "print(85)")
    assert naive_verdict("right", "print(2 * int(input()))")
