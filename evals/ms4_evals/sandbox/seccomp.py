"""A filter of system calls that no honest program needs and that reach past namespaces and limits.

Namespaces hide files, network and processes, but not everything is in one: the kernel's key rings, VM sockets (the hypervisor's host),
``bpf``, ``perf_event_open``; and memory that belongs to no process (``memfd_create``, System V segments) is seen by no limit.
The filter answers those calls with EPERM; calls of another architecture kill the process. Of sockets it leaves those of the file system's
family: buffers of network sockets are memory of the kernel's that no limit bounds, and nobody would answer them anyway.
Layout of a program and of ``seccomp_data``: ``linux/filter.h``, ``linux/seccomp.h``; numbers: ``asm/unistd.h`` of each architecture.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_seccomp.py``.
"""

from __future__ import annotations

import platform
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Calls of x86_64 with 32-bit pointers carry this bit; they would slip past a comparison of numbers.
_X32_BIT = 0x4000_0000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_KILL, _REFUSE, _NO_SUCH_CALL, _ALLOW = 0x8000_0000, 0x0005_0001, 0x0005_0026, 0x7FFF_0000

AF_UNIX = 1
_NEW_NAMESPACES = 0x7E02_0080
"""CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

# call -> (x86_64, aarch64)
REFUSED: dict[str, tuple[int, int]] = {
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    # Key rings, which are shared with whoever started us.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Large surfaces of the kernel.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # Memory that no process's size shows.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    # Namespaces and mounts: already without privilege, refused once more.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    # The machine.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "personality": (135, 92),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
# Allowed only with this first argument: local sockets; limits of the calling process, not of the keeper.
FIRST_ARGUMENT: dict[str, tuple[tuple[int, int], int]] = {
    "socket": ((41, 198), AF_UNIX),
    "socketpair": ((53, 199), AF_UNIX),
    "prlimit64": ((302, 261), 0),
}


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter for ``machine`` (default: this one); None where the numbers are not known, and bubblewrap's own walls stand alone."""
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        return None
    column = list(_AUDIT_ARCH).index(machine)
    steps = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, _X32_BIT, 0, 1), _step(_RETURN, _KILL)]
    for numbers in REFUSED.values():
        steps += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, _REFUSE)]
    # Its flags lie in memory, which a filter cannot read; C libraries fall back on clone.
    steps += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _NO_SUCH_CALL)]
    steps += [
        _step(_EQUAL, _CLONE[column], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]
    for numbers, wanted in FIRST_ARGUMENT.values():
        steps += [_step(_EQUAL, numbers[column], 0, 4), _step(_LOAD, _FIRST_ARGUMENT_AT)]
        steps += [_step(_EQUAL, wanted, 1, 0), _step(_RETURN, _REFUSE), _step(_RETURN, _ALLOW)]
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)
