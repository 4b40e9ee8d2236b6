"""The server's application: paths, their forms, and errors in one shape.

    app = create_app(thread, tokenizer, ServerSettings("my-model"))

Exercise it: ``pytest tests/ms4_train/serving/test_app.py``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ms4_train.chat import ChatTokenizer
from ms4_train.inference.background import EngineThread
from ms4_train.serving import endpoints, model_endpoints
from ms4_train.serving.answer_fields import ChatCompletion, DroppedAdapter, ErrorBody, Health, ModelCard, ModelList, TextCompletion
from ms4_train.serving.chat_fields import AdapterName, ChatRequest, NewAdapter
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.failures import STATUSES, ApiError
from ms4_train.serving.gate import Gate
from ms4_train.serving.metrics import CONTENT_TYPE
from ms4_train.serving.openapi import body_of, describe
from ms4_train.serving.service import Service
from ms4_train.serving.settings import ServerSettings

LOG = logging.getLogger("ms4_train.serving")
_PASSING: tuple[int, ...] = (401, 403)
# Of each event; its data are a chunk as JSON, or [DONE].
_STREAM = {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}}


def create_app(thread: EngineThread, tokenizer: ChatTokenizer, settings: ServerSettings) -> FastAPI:
    """The application over a running engine; ``app.state.service`` is what its endpoints share.

    Args:
        thread: started; the caller stops it after the server has ended.
        tokenizer: of the model.
        settings: names, keys and bounds.
    """
    service = Service(thread, tokenizer, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # No documentation pages: they would load scripts from elsewhere.
    app = FastAPI(title="ms4 serve", version="1", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    app.add_middleware(Gate, settings=settings)
    app.add_exception_handler(ApiError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_defect)
    _add_generation(app, service)
    _add_models(app, service)
    _add_health(app, service)
    app.openapi = lambda: describe(app, service)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


def _add_generation(app: FastAPI, service: Service) -> None:
    answers = _errors(*STATUSES)

    @app.post(
        "/v1/chat/completions",
        operation_id="chat_completions",
        responses={200: {"model": ChatCompletion, "content": _STREAM}, **answers},
        openapi_extra=body_of(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """The assistant's next turn; with ``stream`` as server-sent events."""
        return await endpoints.chat_completions(service, request)

    @app.post(
        "/v1/completions",
        operation_id="completions",
        responses={200: {"model": TextCompletion, "content": _STREAM}, **answers},
        openapi_extra=body_of(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """What follows a text; with ``stream`` as server-sent events."""
        return await endpoints.completions(service, request)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", operation_id="models", responses={200: {"model": ModelList}, **_errors(*_PASSING)})
    async def models() -> JSONResponse:
        """The model and its adapters."""
        return JSONResponse(model_endpoints.model_list(service))

    @app.get("/v1/models/{name:path}", operation_id="model", responses={200: {"model": ModelCard}, **_errors(*_PASSING, 404)})
    async def model(name: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(model_endpoints.model_card(service, name))

    if service.settings.adapter_folder is None:
        return
    answers = _errors(*STATUSES)

    @app.post(
        "/v1/load_lora_adapter",
        operation_id="load_adapter",
        responses={200: {"model": ModelCard}, **answers},
        openapi_extra=body_of(NewAdapter),
    )
    async def load_adapter(request: Request) -> JSONResponse:
        """Load an adapter from below the server's folder of adapters."""
        return JSONResponse(await model_endpoints.load_adapter(service, request))

    @app.post(
        "/v1/unload_lora_adapter",
        operation_id="drop_adapter",
        responses={200: {"model": DroppedAdapter}, **answers},
        openapi_extra=body_of(AdapterName),
    )
    async def drop_adapter(request: Request) -> JSONResponse:
        """Drop an adapter that no answer uses."""
        return JSONResponse(await model_endpoints.drop_adapter(service, request))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", operation_id="health", responses={200: {"model": Health}, **_errors(403, 503)})
    async def health() -> JSONResponse:
        """Whether requests are answered."""
        service.check_alive()
        return JSONResponse({"status": "ok"})

    @app.get(
        "/metrics",
        operation_id="metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_errors(*_PASSING)},
    )
    async def metrics() -> Response:
        """Counters and latencies for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _tell_http(request: Request, error: Exception) -> Response:
    """Of paths and methods that do not exist."""
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:200]}", code="unknown_endpoint")
    return JSONResponse(told.body, error.status_code, error.headers)


async def _tell_defect(request: Request, error: Exception) -> Response:
    """Of what is our fault; the server logs it with its traceback."""
    return JSONResponse(ApiError(500, "The server failed; its log says why.", code="defect").body, 500)
