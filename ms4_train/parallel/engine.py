"""The choice of an engine: a plain optimizer for one process, DeepSpeed for several.

Exercise it: ``pytest tests/ms4_train/parallel/test_engine.py``.
"""

from __future__ import annotations

from torch import nn

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.parallel.interface import TrainEngine
from ms4_train.parallel.mesh import Mesh


def make_engine(model: nn.Module, mesh: Mesh, *, training: TrainingSection, parallel: ParallelSection) -> TrainEngine:
    """The engine for this mesh: ``LocalEngine`` for one process or ZeRO stage 0, else ``DeepSpeedEngine``, which alone imports deepspeed.

    ``model`` is on ``mesh.device``, frozen and adapted as it will be trained; with expert parallelism, ``shard_experts`` was called before.

    Raises:
        TrainingError: no parameter is trained.
        ParallelError: the model does not fit the mesh.
    """
    if mesh.world_size == 1 or parallel.zero_stage == 0:
        from ms4_train.parallel.local import LocalEngine

        return LocalEngine(model, mesh, training=training)
    from ms4_train.parallel.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, mesh, training=training, parallel=parallel)
