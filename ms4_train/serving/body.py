"""A request's body: read within its bounds of bytes and time, parsed as strict JSON.

Exercise it: ``pytest tests/ms4_train/serving/test_body.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from ms4_train.errors import UntrustedInputError
from ms4_train.serving.admission import Ticket
from ms4_train.serving.failures import ApiError, bad_request
from ms4_train.serving.settings import ServerSettings
from ms4_train.untrusted import parse_json

_COUNTED = (b",", b"[", b"{")


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def read_body(request: Request, ticket: Ticket, settings: ServerSettings) -> bytes:
    """The body's bytes, which the ticket then holds.

    Raises:
        ApiError: 413 or 429 too large, 415 no JSON, 408 too slow.
        ClientGoneError: the connection was closed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers send other kinds to any address without asking; JSON they do not.
        raise ApiError(415, "The body must be JSON, sent with Content-Type: application/json.", code="not_json")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > settings.max_body_bytes:
        raise _too_large(settings)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                piece = message.get("body", b"")
                size += len(piece)
                if size > settings.max_body_bytes:
                    raise _too_large(settings)
                ticket.hold(len(piece))
                pieces.append(piece)
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError:
        raise ApiError(408, f"The body did not come within {settings.body_seconds:g} seconds.", code="body_timeout", close=True) from None


def parse_body(data: bytes, settings: ServerSettings) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: 413 too many values, 400 no strict JSON object.
    """
    if sum(data.count(sign) for sign in _COUNTED) > settings.max_json_values:
        raise ApiError(413, f"The body holds more than {settings.max_json_values:,} commas and brackets.", code="too_many_values")
    try:
        value = parse_json(data)
    except UntrustedInputError as error:
        place = f" (line {error.line})" if error.line else ""
        raise bad_request(f"The body is {error.message}{place}", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", None, "invalid_json")
    return value


def _too_large(settings: ServerSettings) -> ApiError:
    return ApiError(413, f"The body is larger than {settings.max_body_bytes:,} bytes.", code="body_too_large", close=True)
