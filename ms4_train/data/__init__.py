"""Rows on their way to the training loop: reading, checking, mixing, loss masks, packing, and a position that resumes exactly.

Names are imported when they are first used, because the workers that decode images need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_train.data.batch import NO_LOSS, PackedBatch
    from ms4_train.data.loader import TrainLoader, build_eval_batches, build_loader
    from ms4_train.data.preparation import PreparedData, prepare, survey
    from ms4_train.data.row_survey import Survey
    from ms4_train.data.rows import Fault

_HOMES = {
    "NO_LOSS": "batch",
    "Fault": "rows",
    "PackedBatch": "batch",
    "PreparedData": "preparation",
    "Survey": "row_survey",
    "TrainLoader": "loader",
    "build_eval_batches": "loader",
    "build_loader": "loader",
    "prepare": "preparation",
    "survey": "preparation",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
