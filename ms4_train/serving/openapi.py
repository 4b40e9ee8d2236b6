"""The server's OpenAPI description. Bodies are read and checked by us, so FastAPI does not know them; their forms are put in here.

Exercise it: ``pytest tests/ms4_train/serving/test_openapi.py``.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ms4_train.serving.chat_fields import AdapterName, ChatRequest, NewAdapter
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.service import Service

BODIES: tuple[type[BaseModel], ...] = (ChatRequest, CompletionRequest, NewAdapter, AdapterName)
_REFERENCE = "#/components/schemas/{model}"
_KEY = {"type": "http", "scheme": "bearer"}


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What a path operation says about its body."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, service: Service) -> dict[str, Any]:
    """The description, with the names that are served now."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, forms = models_json_schema([(kind, "validation") for kind in BODIES], ref_template=_REFERENCE)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(forms["$defs"])
    for kind in (ChatRequest, CompletionRequest):
        schemas[kind.__name__]["properties"]["model"] = {"type": "string", "enum": service.names}
    if service.settings.api_keys:
        found["components"]["securitySchemes"] = {"key": _KEY}
        found["security"] = [{"key": []}]
    return found
