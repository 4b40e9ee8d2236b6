"""The OpenAPI description, and requests that schemathesis makes from it: no 5xx, and every response as it is described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.served import NAME, Served, served, tiny_engine

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics"}
GENERATE = ["/v1/chat/completions", "/v1/completions"]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A server whose answers are short, so that requests without ``max_tokens`` do not take the test's time."""
    with served(tiny_engine(), max_tokens=4) as running:
        yield running


def test_the_description_names_what_is_served(small: Served) -> None:
    found = httpx.get(f"{small.url}/openapi.json").json()
    schemas = found["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["model"]["enum"] == [NAME]
    assert schemas["ChatRequest"]["additionalProperties"] is False
    assert set(found["paths"]) == PATHS
    assert "security" not in found
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_keys_and_adapters_are_described(tmp_path) -> None:
    with served(api_keys=("k",), adapter_folder=tmp_path) as server:
        found = httpx.get(f"{server.url}/openapi.json", headers={"authorization": "Bearer k"}).json()
    assert found["security"] == [{"key": []}]
    assert set(found["paths"]) == PATHS | {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}


def fuzz(server: Served, path: str, mode: GenerationMode, examples: int) -> Counter[int]:
    """Let schemathesis ask; returns how often each status was answered."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    method = "POST" if path in GENERATE else "GET"
    operation = schema[path][method]
    statuses: Counter[int] = Counter()

    @settings(max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        checks = [*CHECKS, negative_data_rejection] if mode is NEGATIVE else CHECKS
        case.validate_response(response, checks=checks)

    ask()
    server.wait_idle()
    assert server.service.admission.held_bytes == 0
    return statuses


@pytest.mark.parametrize("path", GENERATE)
def test_right_requests_find_no_fault(small: Served, path: str) -> None:
    fuzz(small, path, POSITIVE, 8)


@pytest.mark.parametrize("path", GENERATE)
def test_wrong_requests_are_refused(small: Served, path: str) -> None:
    statuses = fuzz(small, path, NEGATIVE, 12)
    assert 200 not in statuses


def test_a_name_is_any_text(small: Served) -> None:
    fuzz(small, "/v1/models/{name}", POSITIVE, 20)


def test_control_a_fault_is_found(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from ms4_train.serving import model_endpoints

    monkeypatch.setattr(model_endpoints, "model_card", lambda service, name: {"id": 1})
    with pytest.raises(BaseException, match=r"schema|conform") as caught:
        fuzz(small, "/v1/models/{name}", POSITIVE, 5)
    assert not isinstance(caught.value, KeyboardInterrupt)


@pytest.mark.slow
@pytest.mark.parametrize("path", GENERATE)
@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE], ids=["right", "wrong"])
def test_long_fuzzing(small: Served, path: str, mode: GenerationMode) -> None:
    fuzz(small, path, mode, 500)
