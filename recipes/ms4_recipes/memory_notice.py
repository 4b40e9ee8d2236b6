"""The memory that a run will need, said before its weights are read, with a warning where the machine has less.

Exercise it: ``ms4 train FILE.yaml --dry-run``, or ``pytest tests/recipes/ms4_recipes/test_memory_notice.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from ms4_train.config.schema import SftRun
from ms4_train.parallel import Mesh
from ms4_train.planning import memory_warning, plan_memory, read_base


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
    warning = memory_warning(plan, device_bytes(mesh.device), "the device" if on_gpu else "each process of this machine")
    if warning is not None:
        yield warning


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU; without one, this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (int(local) if local.isdigit() and int(local) else 1)
