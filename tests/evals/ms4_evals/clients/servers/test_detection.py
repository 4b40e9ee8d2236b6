"""Which program serves: by what real servers said of themselves (recorded), and by documents for those that cannot run here."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from support.recorded_replies import all_names, load

from ms4_evals.clients.servers.detection import MOST_BYTES, UNKNOWN, detect_name

LM_STUDIO = {"data": [{"id": "qwen3.5-35b-a3b", "object": "model", "owned_by": "organization_owner"}], "object": "list"}
"""https://github.com/eyalrot/ollama_openai/pull/34"""


def detect(handler, base_url="http://127.0.0.1:8000/v1", headers=None):
    async def run():
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            return await detect_name(client, base_url, headers or {})

    return asyncio.run(run())


def of_routes(routes, server="uvicorn"):
    def handler(request):
        if request.url.path not in routes:
            return httpx.Response(404, json={"detail": "Not Found"}, headers={"server": server})
        found = routes[request.url.path]
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found, headers={"server": server})

    return handler


@pytest.mark.parametrize("name", all_names())
def test_real_servers(name):
    recording = load(name)

    def handler(request):
        status, server, body = recording.routes.get(request.url.path, (404, "", "{}"))
        return httpx.Response(status, text=body, headers={"server": server})

    assert detect(handler) == recording.kind


@pytest.mark.parametrize("name", ["vllm_parser", "llama_cpp"])
def test_real_servers_whose_list_of_models_is_withheld(name):
    recording = load(name)

    def handler(request):
        status, server, body = recording.routes.get(request.url.path, (404, "", "{}"))
        if request.url.path == "/v1/models":
            status, body = 401, "{}"
        return httpx.Response(status, text=body, headers={"server": server})

    assert detect(handler) == recording.kind


@pytest.mark.parametrize(
    ("routes", "kind"),
    [
        ({"/v1/models": LM_STUDIO}, "lm-studio"),
        ({"/api/v0/models": LM_STUDIO}, "lm-studio"),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]}}, "sglang"),
        ({"/model_info": {"model_path": "m"}}, "sglang"),
        ({"/get_model_info": {"model_path": "m"}}, "sglang"),
        ({"/props": {"default_generation_settings": {}}}, "llama.cpp"),
        # transformers serve gives the owner of the repository, and fails where the hub has no cache.
        (
            {
                "/v1/models": {"data": [{"id": "mistralai/m", "owned_by": "mistralai"}]},
                "/openapi.json": {"paths": {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}}},
            },
            "transformers",
        ),
        (
            {
                "/v1/models": httpx.Response(500, text="Internal Server Error"),
                "/openapi.json": {"paths": {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}}},
            },
            "transformers",
        ),
        ({}, UNKNOWN),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "openai"}]}}, UNKNOWN),
        ({"/v1/models": {"data": [{"id": "m"}, None, 3, {"owned_by": ["vllm"]}]}}, UNKNOWN),
        ({"/v1/models": {"data": {"vllm": 1}}}, UNKNOWN),
        ({"/v1/models": httpx.Response(200, text="<html>owned_by vllm</html>")}, UNKNOWN),
        ({"/v1/models": httpx.Response(200, text='[{"owned_by": "vllm"}]')}, UNKNOWN),
        ({"/v1/models": httpx.Response(200, text='{"data": [], "data": []}'), "/openapi.json": {"paths": ["/reset"]}}, UNKNOWN),
    ],
)
def test_by_document(routes, kind):
    assert detect(of_routes(routes)) == kind


def test_known_hosts_are_not_asked():
    def handler(request):
        raise AssertionError(request.url)

    assert detect(handler, "https://api.openai.com/v1") == "openai"
    assert detect(handler, "https://api.mistral.ai/v1/") == "mistral"


def test_a_host_that_only_looks_like_one_is_asked():
    assert detect(of_routes({"/v1/models": {"data": [{"owned_by": "vllm"}]}}), "https://api.openai.com.example.org/v1") == "vllm"


def test_the_key_goes_with_every_question_and_paths_before_the_version_stay():
    asked = []

    def handler(request):
        asked.append((request.url.path, request.headers.get("authorization")))
        return httpx.Response(404)

    detect(handler, "http://127.0.0.1:8000/proxy/v1", {"Authorization": "Bearer key"})
    assert asked[0] == ("/proxy/v1/models", "Bearer key")
    assert {key for _, key in asked} == {"Bearer key"}


def test_a_server_that_cannot_be_reached_is_no_kind():
    def handler(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(httpx.ConnectError):
        detect(handler)


def test_a_huge_answer_tells_nothing():
    body = b'{"data": [{"owned_by": "vllm"}], "pad": "' + b"x" * MOST_BYTES + b'"}'
    assert detect(of_routes({"/v1/models": httpx.Response(200, content=body)})) == UNKNOWN
    assert detect(of_routes({"/v1/models": httpx.Response(200, content=body.replace(b"x" * MOST_BYTES, b""))})) == "vllm"
