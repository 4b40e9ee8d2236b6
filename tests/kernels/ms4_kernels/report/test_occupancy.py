"""Occupancy against the limits that NVIDIA's programming guide and occupancy calculator give for compute capability 9.0."""

from __future__ import annotations

import pytest

from ms4_kernels.report.occupancy import programs_per_multiprocessor


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "programs"),
    [
        (32, 1024, 0, 2),  # 2048 threads
        (32, 32, 0, 32),  # 32 programs, whatever else is free
        (64, 256, 0, 4),  # 65536 / (64 * 256)
        (65, 256, 0, 3),  # registers are handed out 8 at a time: 72
        (128, 256, 0, 2),
        (168, 384, 0, 1),  # 3 warps fit each quarter, 12 in all
        (255, 256, 0, 1),
        (32, 128, 227 * 1024, 1),  # the largest program
        (32, 128, 227 * 1024 + 1, 0),  # too large to launch
        (32, 128, 113 * 1024, 2),  # 2 * (113 + 1) KiB are all there is
        (32, 128, 113 * 1024 + 1, 1),
    ],
)
def test_known_values(registers, threads, shared, programs):
    assert programs_per_multiprocessor(registers, threads, shared) == programs


def test_quarters():
    """Registers for 5 warps of 96 in a quarter, 20 in all: one program of 12 warps, though 65536 // (96 * 384) is 1 too; of 10 warps, 2."""
    assert programs_per_multiprocessor(96, 320, 0) == 2
    # 168 registers: 3 warps in each quarter, so 12 in all; without quarters it would be 12.19, with 10 warps a program 1 either way.
    assert programs_per_multiprocessor(168, 320, 0) == 1


def test_tensor_memory():
    assert programs_per_multiprocessor(64, 128, 0, 256) == 2
    assert programs_per_multiprocessor(64, 128, 0, 512) == 1


@pytest.mark.parametrize("wrong", [(0, 128, 0), (256, 128, 0), (64, 0, 0), (64, 2048, 0), (64, 128, -1)])
def test_impossible_kernels(wrong):
    with pytest.raises(ValueError, match="no kernel has"):
        programs_per_multiprocessor(*wrong)
