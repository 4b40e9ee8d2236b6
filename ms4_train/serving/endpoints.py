"""The two endpoints that generate: chat completions and completions.

Exercise it: ``pytest tests/ms4_train/serving/test_endpoints.py``.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ms4_train.inference.request import GenerationRequest
from ms4_train.serving.calls import Call, Job
from ms4_train.serving.chat_answers import ChatAnswers
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.completion_answers import CompletionAnswers
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.parameters import check_fields, form_field
from ms4_train.serving.prompts import prompt_count
from ms4_train.serving.service import Service


async def chat_completions(service: Service, request: Request) -> Response:
    """``POST /v1/chat/completions``.

    Raises:
        ApiError: it cannot be answered.
    """
    call = Call(service, "chat", f"chatcmpl-{uuid.uuid4().hex}")
    try:
        fields, body = await call.read(request, ChatRequest, lambda fields: check_fields(fields, service.settings))
        adapter, call.form_field = service.adapter_of(fields.model), form_field(fields)
        call.ticket.add_answers((fields.n or 1) - 1)

        def prepare() -> GenerationRequest:
            return service.prompts.chat(fields, body, call.request_id, adapter, call.ticket)

        requests = [await call.work(prepare)]
        answers = ChatAnswers(fields, service.tokenizer, _head(call, fields))
        return await call.answer(request, Job(requests, answers, bool(fields.stream), _counts_tokens(fields)))
    except Exception as error:
        raise call.fail(error) from None


async def completions(service: Service, request: Request) -> Response:
    """``POST /v1/completions``.

    Raises:
        ApiError: it cannot be answered.
    """
    call = Call(service, "completions", f"cmpl-{uuid.uuid4().hex}")
    try:
        fields, _ = await call.read(request, CompletionRequest, lambda fields: check_fields(fields, service.settings))
        adapter, call.form_field = service.adapter_of(fields.model), form_field(fields)
        call.ticket.add_answers((fields.n or 1) * prompt_count(fields) - 1)

        def prepare() -> list[GenerationRequest]:
            return service.prompts.completions(fields, call.request_id, adapter, call.ticket)

        requests = await call.work(prepare)
        answers = CompletionAnswers(fields, requests, service.tokenizer, _head(call, fields))
        return await call.answer(request, Job(requests, answers, bool(fields.stream), _counts_tokens(fields)))
    except Exception as error:
        raise call.fail(error) from None


def _head(call: Call, fields: ChatRequest | CompletionRequest) -> dict[str, Any]:
    return {"id": call.request_id, "created": int(time.time()), "model": fields.model}


def _counts_tokens(fields: ChatRequest | CompletionRequest) -> bool:
    return bool(fields.stream_options and fields.stream_options.include_usage)
