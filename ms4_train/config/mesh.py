"""Which numbers of processes fit a run: checked from the file and from what was started, before a row or a weight is read.

``ms4 config check``, ``ms4 train --dry-run`` and the start of every rank call ``check_mesh``. Exercise it:
``pytest tests/ms4_train/config/test_mesh.py``.

Not covered: whether the memory is enough (``ms4_train.planning``), and how ranks find each other (``ms4_train.parallel.mesh``).
"""

from __future__ import annotations

from collections.abc import Iterable

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError


def planned_processes(section: ParallelSection, started: int | None = None) -> int | None:
    """Number of processes that the run is meant for: as many as were started, else what the file says; None where nobody says."""
    return started if started is not None and started > 1 else section.data_parallel_size or started


def check_mesh(section: ParallelSection, processes: int | None, num_experts: int | None = None) -> None:
    """Refuse a layout of processes that cannot work, naming the key, what was given, and the nearest choices that can.

    Args:
        section: of the run.
        processes: that were started, or will be; None where it is not known yet, so that less is checked.
        num_experts: routed experts of a layer of the model; None where the model was not looked at yet.

    Raises:
        ParallelError: the first thing that does not fit.
    """
    given = section.data_parallel_size
    if given is not None and processes is not None and given != processes:
        raise ParallelError(
            f"is {given}, but {_processes(processes)}.",
            key="parallel.data_parallel_size",
            fix=f"set it to {processes} or leave it out, or start {given} ({_start(given)}).",
        )
    _check_expert_parallel(section.expert_parallel_size, processes, num_experts)
    _check_offload(section, processes)


def expert_parallel_sizes(processes: int | None, num_experts: int | None) -> list[int]:
    """Every ``expert_parallel_size`` that fits, ascending: it divides the processes and the experts, as far as they are known."""
    known = [number for number in (processes, num_experts) if number is not None]
    return [size for size in range(1, min(known, default=1) + 1) if all(number % size == 0 for number in known)]


def nearest(wanted: int, valid: Iterable[int]) -> list[int]:
    """The largest valid number below ``wanted`` and the smallest above it, as far as there are such."""
    below = [number for number in valid if number < wanted]
    above = [number for number in valid if number > wanted]
    return ([max(below)] if below else []) + ([min(above)] if above else [])


def _check_expert_parallel(size: int, processes: int | None, num_experts: int | None) -> None:
    key = "parallel.expert_parallel_size"
    offered = " or ".join(map(str, nearest(size, expert_parallel_sizes(processes, num_experts))))
    # The experts first: a size that no number of processes helps must not be offered with one.
    if num_experts is not None and num_experts % size:
        over = "" if processes is None else f", and {_processes(processes)}"
        raise ParallelError(
            f"is {size}, but a layer of the model has {num_experts} experts{over}: each rank must hold equally many.",
            key=key,
            fix=f"use {offered}.",
        )
    if processes is not None and processes % size:
        raise ParallelError(
            f"is {size}, but {_processes(processes)}, which cannot be divided into groups of {size}.",
            key=key,
            fix=f"use {offered}, or start a multiple of {size} ({_start(size)}).",
        )


def _check_offload(section: ParallelSection, processes: int | None) -> None:
    stage = section.zero_stage
    for key, stages in (("offload_optimizer", (1, 2, 3)), ("offload_parameters", (3,))):
        if getattr(section, key) == "none":
            continue
        if stage not in stages:
            offered = " or ".join(map(str, nearest(stage, stages)))
            raise ParallelError(
                f"is cpu, but with zero_stage {stage} every rank computes with what it would move away.",
                key=f"parallel.{key}",
                fix=f"set parallel.zero_stage to {offered}, or {key} to none.",
            )
        if processes == 1:
            raise ParallelError(
                "is cpu, but one process trains without DeepSpeed, which alone moves state to the CPU.",
                key=f"parallel.{key}",
                fix=f"set it to none, or start 2 processes or more ({_start(2)}).",
            )


def _processes(count: int) -> str:
    return f"there {'is' if count == 1 else 'are'} {count} process{'' if count == 1 else 'es'}"


def _start(count: int) -> str:
    return f"--nproc {count}, or torchrun --nproc-per-node {count}"
