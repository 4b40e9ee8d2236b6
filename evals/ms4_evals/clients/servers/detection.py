"""Finds out which program serves, by its address, its own routes and what its list of models says.

Exercise it: ``pytest tests/evals/ms4_evals/clients/servers/test_detection.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

UNKNOWN = "compatible"
MOST_BYTES = 4 << 20

_HOSTS = {"api.openai.com": "openai", "api.mistral.ai": "mistral"}
# LM Studio gives every model the same owner: https://github.com/eyalrot/ollama_openai/pull/34
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp", "ms4": "ms4", "organization_owner": "lm-studio"}


async def detect_name(client: httpx.AsyncClient, base_url: str, headers: Mapping[str, str]) -> str:
    """Name of the kind of server, ``compatible`` where nothing tells.

    Args:
        client: to ask with.
        base_url: with its version, such as ``http://127.0.0.1:8000/v1``.
        headers: of every question, the key among them.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    url = httpx.URL(base_url)
    if url.host in _HOSTS:
        return _HOSTS[url.host]
    root = str(url.copy_with(path="/", query=None, fragment=None)).rstrip("/")
    ask = _Asker(client, headers)
    models = await ask(base_url.rstrip("/") + "/models")
    if ask.server == "llama.cpp":
        return "llama.cpp"
    for row in models.get("data") or [] if isinstance(models.get("data"), list) else []:
        owner = row.get("owned_by") if isinstance(row, Mapping) else None
        if isinstance(owner, str) and owner in _OWNERS:
            return _OWNERS[owner]
    return await _by_routes(ask, root)


async def _by_routes(ask: _Asker, root: str) -> str:
    """By routes that one program alone has; for lists of models that are empty, refused, or name another owner."""
    if "default_generation_settings" in await ask(root + "/props"):
        return "llama.cpp"
    # The newer name first; the older one still answers: sgl-project/sglang python/sglang/srt/entrypoints/http_server.py
    for route in ("/model_info", "/get_model_info"):
        if "model_path" in await ask(root + route):
            return "sglang"
    if isinstance((await ask(root + "/api/v0/models")).get("data"), list):
        return "lm-studio"
    paths = (await ask(root + "/openapi.json")).get("paths")
    if isinstance(paths, Mapping) and {"/load_model", "/reset", "/v1/chat/completions"} <= set(paths):
        return "transformers"
    if isinstance(paths, Mapping) and {"/version", "/v1/chat/completions", "/tokenize"} <= set(paths):
        return "vllm"
    return UNKNOWN


class _Asker:
    """Asks for JSON objects; an answer that is none is empty. ``server``: the header of the last answer."""

    def __init__(self, client: httpx.AsyncClient, headers: Mapping[str, str]) -> None:
        self.server = ""
        self._client = client
        self._headers = dict(headers)

    async def __call__(self, url: str) -> dict[str, Any]:
        body = b""
        async with self._client.stream("GET", url, headers=self._headers) as response:
            self.server = response.headers.get("server", "").lower()
            if response.status_code != 200:
                return {}
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    return {}
        try:
            found = parse_json(body)
        except UntrustedInputError:
            return {}
        return found if isinstance(found, dict) else {}
