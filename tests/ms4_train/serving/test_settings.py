"""Bounds that make no sense are refused when the server is set up, not when the first request comes."""

from __future__ import annotations

import pytest

from ms4_train.errors import ConfigError
from ms4_train.serving.settings import ServerSettings


def test_defaults_are_closed() -> None:
    settings = ServerSettings("m")
    assert (settings.image_hosts, settings.adapter_folder, settings.api_keys) == ((), None, ())
    assert settings.created > 1_700_000_000


@pytest.mark.parametrize(
    "fault",
    [
        {"max_body_bytes": 0},
        {"request_seconds": -1.0},
        {"max_answers": 0},
        {"max_tokens": 0},
        {"model_name": ""},
        {"adapters": ("m",)},
        {"adapters": ("a", "a")},
        {"api_keys": ("",)},
    ],
    ids=str,
)
def test_senseless_settings_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(**{"model_name": "m", **fault})  # pyright: ignore[reportArgumentType]


def test_what_may_be_zero_may() -> None:
    assert ServerSettings("m", drain_seconds=0, max_images=0).max_images == 0


def test_keys_are_not_shown() -> None:
    assert "hunter2" not in repr(ServerSettings("m", api_keys=("hunter2",)))
