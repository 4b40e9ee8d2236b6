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


def test_a_warp_lies_in_one_quarter_of_the_registers():
    """136 registers: 3 warps in a quarter, 12 in all. All together would be enough for 15, three programs of 5."""
    assert 65536 // (136 * 32) == 15
    assert programs_per_multiprocessor(136, 160, 0) == 2
    assert programs_per_multiprocessor(128, 160, 0) == 3


def test_tensor_memory():
    assert programs_per_multiprocessor(64, 128, 0, 256) == 2
    assert programs_per_multiprocessor(64, 128, 0, 512) == 1


@pytest.mark.parametrize("wrong", [(0, 128, 0), (256, 128, 0), (64, 0, 0), (64, 2048, 0), (64, 128, -1)])
def test_impossible_kernels(wrong):
    with pytest.raises(ValueError, match="no kernel has"):
        programs_per_multiprocessor(*wrong)
