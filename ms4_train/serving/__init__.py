"""The server: the engine behind an OpenAI-compatible HTTP API, bounded in bytes, tokens, time and concurrency.

``create_app`` makes the application, ``run_server`` serves it; ``ms4 serve`` does both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_train.serving.app import create_app
    from ms4_train.serving.http_server import run_server
    from ms4_train.serving.settings import ServerSettings

_HOMES = {"ServerSettings": "settings", "create_app": "app", "run_server": "http_server"}

__all__ = ["ServerSettings", "create_app", "run_server"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
