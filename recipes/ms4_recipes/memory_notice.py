"""The memory that a run will need, said before its weights are read, with a warning where the machine has less.

Not covered: other machines of the run, which are taken to be like this one; limits of version 1 of Linux's control groups.
Exercise it: ``ms4 train FILE.yaml --dry-run``, or ``pytest tests/recipes/ms4_recipes/test_memory_notice.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ms4_train.config.schema import SftRun
from ms4_train.parallel import Mesh
from ms4_train.planning import host_warning, memory_warning, plan_memory, read_base

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_CONTROL_GROUPS = Path("/proc/self/cgroup")


def memory_notice(run: SftRun, mesh: Mesh, *, images: bool, whole: bool) -> Iterator[str]:
    """The lines to print, without markup.

    Args:
        run: the whole run. With ``adapter.init_from`` there are no lines: that file alone knows rank and targets.
        mesh: of the processes, whose number fits.
        images: whether training rows hold any.
        whole: the table too; otherwise the warning alone, where there is one.

    Raises:
        AdapterError: a target that matches nothing.
        WeightsError: the model's files.
    """
    if run.adapter is not None and run.adapter.init_from is not None:
        return
    on_gpu = mesh.device.type == "cuda"
    plan = plan_memory(run, read_base(run.model.path), mesh.world_size, images=images, on_gpu=on_gpu)
    if whole:
        yield from plan.lines()
    for warning in (
        memory_warning(plan, device_bytes(mesh.device), "the device" if on_gpu else "each process of this machine"),
        host_warning(plan, machine_bytes(), local_ranks(mesh)),
    ):
        if warning is not None:
            yield warning


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU; without one, this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_bytes() // (_started_here() or 1)


def local_ranks(mesh: Mesh) -> int:
    """Ranks of the run on this machine; in a dry run of one process, which stands for all, as many as it has GPUs."""
    return min(mesh.world_size, _started_here() or (torch.cuda.device_count() if mesh.device.type == "cuda" else 1) or 1)


def machine_bytes() -> int:
    """Memory of this machine, or of the part of it that the control groups of this process leave to them."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    folder = CONTROL_GROUPS / _control_group()
    for each in (folder, *folder.parents):
        if each.is_relative_to(CONTROL_GROUPS):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                limits.append(int((each / "memory.max").read_text()))
    return min(limits)


def _control_group() -> str:
    """Of this process, below the folder of all; as a container sees it, there alone."""
    with contextlib.suppress(OSError):
        for line in OWN_CONTROL_GROUPS.read_text().splitlines():
            if line.startswith("0::/"):
                return line.removeprefix("0::/")
    return ""


def _started_here() -> int | None:
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(local) if local.isdigit() and int(local) else None
