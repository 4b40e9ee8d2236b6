"""Run configuration: one YAML file is one run. See ``load.py`` (reading), ``schema.py`` and ``evaluation.py`` (the keys).

The names below are loaded when they are first used, so that importing this package costs nothing.
Exercise it: ``pytest tests/ms4_train/config``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_train.config.editor_schema import json_schema
    from ms4_train.config.evaluation import EvalRun
    from ms4_train.config.load import load_run
    from ms4_train.config.nodes import read_document
    from ms4_train.config.render import to_yaml
    from ms4_train.config.schema import SftRun

_HOMES = {
    "EvalRun": "evaluation",
    "SftRun": "schema",
    "json_schema": "editor_schema",
    "load_run": "load",
    "read_document": "nodes",
    "to_yaml": "render",
}

__all__ = ["EvalRun", "SftRun", "json_schema", "load_run", "read_document", "to_yaml"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
