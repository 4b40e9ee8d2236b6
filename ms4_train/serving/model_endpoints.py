"""The endpoints that say what is served, and change it: models, adapters, health, metrics.

Exercise it: ``pytest tests/ms4_train/serving/test_model_endpoints.py``.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from ms4_train.serving.calls import Call
from ms4_train.serving.chat_fields import AdapterName, NewAdapter
from ms4_train.serving.service import Service


def model_list(service: Service) -> dict[str, Any]:
    """``GET /v1/models``: the model first, then its adapters."""
    return {"object": "list", "data": [model_card(service, name) for name in service.names]}


def model_card(service: Service, name: str) -> dict[str, Any]:
    """``GET /v1/models/NAME``.

    Raises:
        ApiError: 404.
    """
    adapter = service.adapter_of(name)
    return {
        "id": name,
        "object": "model",
        "created": service.settings.created,
        "owned_by": "ms4",
        "root": service.settings.model_name,
        "parent": None if adapter is None else service.settings.model_name,
        "max_model_len": service.max_context,
    }


async def load_adapter(service: Service, request: Request) -> dict[str, Any]:
    """``POST /v1/load_lora_adapter``.

    Raises:
        ApiError: it cannot be loaded.
    """
    call = Call(service, "load_lora_adapter", "adapter")
    try:
        fields, _ = await call.read(request, NewAdapter, lambda fields: None)
        await call.work(lambda: service.load_adapter(fields.lora_name, fields.lora_path))
        call.end_without_answer()
        return model_card(service, fields.lora_name)
    except Exception as error:
        raise call.fail(error) from None


async def drop_adapter(service: Service, request: Request) -> dict[str, Any]:
    """``POST /v1/unload_lora_adapter``.

    Raises:
        ApiError: there is none of this name, or answers use it.
    """
    call = Call(service, "unload_lora_adapter", "adapter")
    try:
        fields, _ = await call.read(request, AdapterName, lambda fields: None)
        await call.work(lambda: service.drop_adapter(fields.lora_name))
        call.end_without_answer()
        return {"id": fields.lora_name, "object": "model", "deleted": True}
    except Exception as error:
        raise call.fail(error) from None
