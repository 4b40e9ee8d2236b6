"""Process mesh, expert parallelism and the training engines."""

from ms4_train.parallel.engine import make_engine
from ms4_train.parallel.exchange import shard_experts
from ms4_train.parallel.interface import StatePiece, TrainEngine
from ms4_train.parallel.mesh import Mesh, init_mesh

__all__ = ["Mesh", "StatePiece", "TrainEngine", "init_mesh", "make_engine", "shard_experts"]
