"""Rows on their way to the training loop: reading, checking, mixing, loss masks, packing, and a position that resumes exactly."""

from ms4_train.data.batch import NO_LOSS, PackedBatch
from ms4_train.data.loader import TrainLoader, build_eval_batches, build_loader
from ms4_train.data.preparation import PreparedData, prepare, survey
from ms4_train.data.row_survey import Survey
from ms4_train.data.rows import Fault

__all__ = [
    "NO_LOSS",
    "Fault",
    "PackedBatch",
    "PreparedData",
    "Survey",
    "TrainLoader",
    "build_eval_batches",
    "build_loader",
    "prepare",
    "survey",
]
