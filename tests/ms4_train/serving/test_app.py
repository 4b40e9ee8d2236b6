"""Paths, methods and errors of the application as a whole."""

from __future__ import annotations

import httpx
import pytest
from support.served import NAME, Served

from ms4_train.serving.answer_fields import ErrorBody, Health, ModelList
from ms4_train.serving.service import Service


def test_what_is_there(server: Served) -> None:
    Health.model_validate(httpx.get(f"{server.url}/health").json())
    listed = ModelList.model_validate(httpx.get(f"{server.url}/v1/models").json())
    assert (listed.data[0].id, listed.data[0].max_model_len) == (NAME, server.thread.engine.max_context)
    assert httpx.get(f"{server.url}/v1/models/{NAME}").json()["id"] == NAME
    assert httpx.get(f"{server.url}/metrics").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/load_lora_adapter", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/", 404),
    ],
)
def test_what_is_not(server: Served, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{server.url}{path}")
    assert response.status_code == status
    ErrorBody.model_validate(response.json())


def test_a_defect_of_ours_is_told_as_one(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of every test that says "never 500": a defect is not passed off as something else."""

    def break_down(service: Service) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Service, "check_alive", break_down)
    response = httpx.get(f"{server.url}/health")
    assert response.status_code == 500
    assert "secret" not in response.text
    ErrorBody.model_validate(response.json())
