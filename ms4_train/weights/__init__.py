"""Model files: what tensors are called and how they are stored; strict reading, whole writing, fresh checkpoints."""

from ms4_train.weights.init import init_checkpoint, read_model_file
from ms4_train.weights.layouts.model_config import read_config
from ms4_train.weights.reading.checkpoint import Checkpoint, open_checkpoint
from ms4_train.weights.reading.fingerprint import base_fingerprint
from ms4_train.weights.reading.loading import load_model
from ms4_train.weights.writer import save_model

__all__ = [
    "Checkpoint",
    "base_fingerprint",
    "init_checkpoint",
    "load_model",
    "open_checkpoint",
    "read_config",
    "read_model_file",
    "save_model",
]
