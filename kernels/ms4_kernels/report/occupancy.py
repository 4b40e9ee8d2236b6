"""How many programs of a kernel fit a multiprocessor of Hopper (sm_90) or of data-centre Blackwell (sm_100) at once.

Limits per multiprocessor are those of compute capabilities 9.0 and 10.0 in NVIDIA's CUDA programming guide; both have the same, but
for tensor memory, which only Blackwell has.
Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_occupancy.py``.
"""

from __future__ import annotations

__all__ = ["programs_per_multiprocessor"]

_REGISTERS = 65536
_REGISTER_UNIT = 256
"""Registers are given to warps in units of this many."""
_QUARTERS = 4
"""Each has its own quarter of the registers, and a warp lies in one."""
_WARPS = 64
_PROGRAMS = 32
_SHARED_BYTES = 228 * 1024
_SHARED_RESERVED = 1024
"""Bytes that the system takes of each program's share; hence 227 KiB for the largest program."""
_SHARED_UNIT = 128
_TENSOR_COLUMNS = 512
_MAX_REGISTERS = 255


def programs_per_multiprocessor(registers: int, threads: int, shared_bytes: int, tensor_columns: int = 0) -> int:
    """The least of what registers, warps, shared memory and tensor memory allow.

    Args:
        registers: of one thread, as ptxas says.
        threads: of one program.
        shared_bytes: shared memory of one program.
        tensor_columns: columns of tensor memory of one program; 0 for a kernel that uses none.

    Returns:
        0 if not even one program fits: such a kernel cannot be launched.

    Raises:
        ValueError: numbers that no kernel has.
    """
    if not (0 < registers <= _MAX_REGISTERS and 0 < threads <= 1024 and shared_bytes >= 0 and tensor_columns >= 0):
        raise ValueError(f"no kernel has {registers} registers, {threads} threads, {shared_bytes} bytes, {tensor_columns} columns")
    warps = _ceil_to(threads, 32) // 32
    warps_by_registers = _REGISTERS // _QUARTERS // _ceil_to(32 * registers, _REGISTER_UNIT) * _QUARTERS
    by_shared = _SHARED_BYTES // _ceil_to(shared_bytes + _SHARED_RESERVED, _SHARED_UNIT)
    by_tensor = _TENSOR_COLUMNS // tensor_columns if tensor_columns else _PROGRAMS
    return min(_PROGRAMS, _WARPS // warps, warps_by_registers // warps, by_shared, by_tensor)


def _ceil_to(value: int, unit: int) -> int:
    return -(-value // unit) * unit
