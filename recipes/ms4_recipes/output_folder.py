"""The output folder of a training run: held against a second run, and one folder for all ranks that save there.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_output_folder.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ms4_train.checkpoint import FolderLock
from ms4_train.config.schema import SftRun
from ms4_train.parallel import Mesh
from ms4_train.parallel.shared_folder import require_shared_folder
from ms4_train.parallel.together import main_only


@contextlib.contextmanager
def output_folder(config: SftRun, mesh: Mesh) -> Iterator[None]:
    """Hold ``output_dir`` while the block runs; it is made where it is absent. Collective, and not for a dry run.

    Without run state rank 0 alone writes results, so that the others need not see its folder.

    Raises:
        CheckpointError: another run holds it.
        StorageError: it cannot be written.
        ParallelError: ranks would save there, and some do not see it.
    """
    folder, locks = Path(config.output_dir), list[FolderLock]()
    try:
        main_only(mesh, lambda: locks.append(FolderLock(folder)))
        if config.training.save_strategy != "no":
            require_shared_folder(mesh, folder)
        yield
    finally:
        for lock in locks:
            lock.release()
