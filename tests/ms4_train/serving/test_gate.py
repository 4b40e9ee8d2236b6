"""The gate: hosts and keys are checked before anything else, on every path but those that are open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ms4_train.serving.gate import Gate, host_name
from ms4_train.serving.settings import ServerSettings


def status(path: str, headers: dict[str, str], **settings: Any) -> int:
    sent: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        raise AssertionError("the gate reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw, "method": "POST"}
    asyncio.run(Gate(behind, ServerSettings("m", **settings))(scope, receive, send))
    return sent[0]["status"]


KEY = {"authorization": "Bearer k"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/openapi.json", "/nothing", "/health/", "//health"])
def test_keys_guard_every_path(path: str) -> None:
    assert status(path, {}, api_keys=("k",)) == 401
    assert status(path, {"authorization": "Bearer x"}, api_keys=("k",)) == 401
    assert status(path, KEY, api_keys=("k",)) == 200


def test_health_is_open_and_metrics_if_wanted() -> None:
    assert status("/health", {}, api_keys=("k",)) == 200
    assert status("/metrics", {}, api_keys=("k",)) == 200
    assert status("/metrics", {}, api_keys=("k",), metrics_need_key=True) == 401
    assert status("/metrics", KEY, api_keys=("k",), metrics_need_key=True) == 200


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost:8000", 200), ("LocalHost", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)]
)
def test_a_web_page_with_a_name_of_its_own_is_refused(host: str, expected: int) -> None:
    assert status("/v1/models", {"host": host}, allowed_hosts=("localhost", "::1")) == expected


def test_without_names_any_host_will_do() -> None:
    assert status("/v1/models", {"host": "evil.example"}) == 200


@pytest.mark.parametrize(("header", "name"), [("a.b:1", "a.b"), ("A", "a"), ("[::1]:5", "::1"), ("[::1", "::1"), ("", "")])
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name
