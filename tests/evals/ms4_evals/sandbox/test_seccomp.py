"""The filter, run by an interpreter of its own, and its numbers beside the kernel's headers. That it bites: ``test_bubblewrap.py``."""

from __future__ import annotations

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from ms4_evals.sandbox.seccomp import FIRST_ARGUMENT, REFUSED, seccomp_filter

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
ALLOW, KILL = 0x7FFF0000, 0x80000000
CLONE, READ = {"x86_64": 56, "aarch64": 220}, {"x86_64": 0, "aarch64": 63}
CLONE_NEWUSER, CLONE_VM = 0x10000000, 0x100
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


def refuse(number: int) -> int:
    return 0x00050000 | number


def answer(program: bytes, architecture: int, number: int, first: int = 0) -> int:
    """Classic BPF as seccomp(2) and linux/filter.h define it, for the instructions that occur."""
    data = struct.pack("=iIQQ", number if number < 1 << 31 else number - (1 << 32), architecture, 0, first) + bytes(40)
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:  # BPF_RET | BPF_K
            return value
        else:
            is_true = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if is_true else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_the_filter_answers(machine):
    program, architecture, column = seccomp_filter(machine), ARCHITECTURES[machine], COLUMN[machine]
    assert program is not None
    # The kernel takes at most 4096 steps.
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096
    for name, numbers in REFUSED.items():
        assert answer(program, architecture, numbers[column]) == refuse(errno.EPERM), name
    for name, (numbers, wanted) in FIRST_ARGUMENT.items():
        assert answer(program, architecture, numbers[column], wanted) == ALLOW, name
        for other in (wanted + 1, 2, 16, 40):
            assert answer(program, architecture, numbers[column], other) == refuse(errno.EPERM), name
    assert answer(program, architecture, CLONE[machine], CLONE_VM | 17) == ALLOW
    assert answer(program, architecture, CLONE[machine], CLONE_VM | CLONE_NEWUSER) == refuse(errno.EPERM)
    # C libraries then use clone, whose flags can be looked at.
    assert answer(program, architecture, 435) == refuse(errno.ENOSYS)
    assert answer(program, architecture, READ[machine]) == ALLOW
    handled = {numbers[column] for numbers in REFUSED.values()} | {numbers[column] for numbers, _ in FIRST_ARGUMENT.values()} | {435}
    for number in set(range(500)) - handled - {CLONE[machine]}:
        assert answer(program, architecture, number) == ALLOW


def test_calls_of_another_architecture_end_the_process():
    program = seccomp_filter("x86_64")
    assert program is not None
    assert answer(program, 0x40000003, 20) == KILL  # AUDIT_ARCH_I386
    assert answer(program, ARCHITECTURES["x86_64"], 0x40000000 | 41) == KILL  # x32


def test_an_unknown_machine_has_no_filter():
    assert seccomp_filter("riscv64") is None
    assert seccomp_filter() == seccomp_filter(platform.machine())


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_the_kernels(machine):
    header = Path(HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"no kernel headers of {machine}")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    ours = REFUSED | {name: numbers for name, (numbers, _) in FIRST_ARGUMENT.items()} | {"clone": (56, 220), "clone3": (435, 435)}
    # An older header does not know the newest calls.
    wrong = {name: numbers for name, numbers in ours.items() if name in known and int(known[name]) != numbers[COLUMN[machine]]}
    assert wrong == {}
    assert len(set(ours) & set(known)) > 40
