"""How large checkpoints are, and whether the disk has room for those of a run.

Exercise it: ``pytest tests/ms4_train/checkpoint/test_room.py``.
"""

from __future__ import annotations

from pathlib import Path

from ms4_train.checkpoint.folders import committed_steps
from ms4_train.checkpoint.part import BYTES_PER_VALUE
from ms4_train.storage import free_bytes, require_free_bytes

SPARE_BYTES = 1 << 20
"""Headers, random state and JSON of one checkpoint."""


def checkpoint_bytes(trained_parameters: int) -> int:
    """Disk space of one checkpoint of that many trained parameters, over all ranks."""
    return trained_parameters * BYTES_PER_VALUE + SPARE_BYTES


def require_room(root: Path, num_bytes: int, *, done: int, keep: int) -> str | None:
    """Refuse a run whose disk does not hold two checkpoints; the one that it may go on from counts.

    Args:
        root: folder of the checkpoints.
        num_bytes: of one, over all ranks.
        done: the step that the run goes on from; later checkpoints are not its own.
        keep: how many it keeps.

    Returns:
        A warning where saves will fail later: the next one is written before the oldest is deleted. None where there is room for all.

    Raises:
        DiskFullError: names the bytes needed, free and missing.
    """
    there = sum(step <= done for step, _ in committed_steps(root)) if done else 0
    require_free_bytes(root, max(1, 2 - there) * num_bytes)  # one is always to come
    free, needed = free_bytes(root), (keep + 1 - min(there, keep)) * num_bytes
    if free is None or free >= needed:
        return None
    return (
        f"{root}: the disk has room for {there + free // num_bytes:,} checkpoints; training.save_total_limit={keep} needs {keep + 1:,}, "
        f"as the next is written before the oldest is deleted; {needed - free:,} bytes are missing."
    )
