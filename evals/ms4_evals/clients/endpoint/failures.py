"""What can go wrong with one request, and what follows: ask again, give the sample up, or stop the run.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_failures.py``.

=========================================  ==============  =========================================================
what came                                  error class     what follows
=========================================  ==============  =========================================================
401, 402, 403, 404, 405, 3xx, used-up      refused         the run stops, unless the server has answered before: then
quota, untrusted certificate                               it is asked again, and stops the run after a few in a row
400, 413, 422 and other 4xx                refused         the sample is given up at once
429                                        rate-limit      again, not before ``Retry-After``; fewer at a time
408, silence                               timeout         again; fewer at a time
500, 502, 503, 504, other 5xx, 409, 425    server          again; after 503 and 529 fewer at a time
refused, reset, name not found             connection      again, elsewhere first
cut, garbled, of another model             bad-response    again, elsewhere first
=========================================  ==============  =========================================================
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from ms4_evals.clients.base import ErrorClass
from ms4_evals.clients.endpoint.retries import retry_after_seconds
from ms4_evals.outside_text import one_line
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

SHOWN_CHARACTERS = 400
"""Of a server's own words in a message."""

_MISCONFIGURED = {401, 402, 403, 404, 405, 407}
_SLOWED = {408, 429, 503, 529}
_AGAIN = {408, 409, 425, 429}
_TOO_LONG = re.compile(
    r"context.{0,3}(length|size|window)|max_model_len|maximum.{0,20}(length|tokens)|too (long|many tokens)|exceed", re.IGNORECASE
)
_USED_UP = re.compile(r"insufficient_quota|billing_hard_limit|credit balance", re.IGNORECASE)


class RequestFailure(Exception):
    """One request that brought no answer.

    Attributes:
        error_class: as stored.
        message: for people, one line; may quote the server.
        asks_again: another attempt may bring an answer.
        is_misconfigured: key, address or name of the model are wrong, so that no request would be answered.
        is_push_back: the server has more to do than it can.
        is_too_long: refused for its length, which says nothing about other requests.
        retry_after: seconds that the server wants to be left alone.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        message: str,
        *,
        asks_again: bool = True,
        is_misconfigured: bool = False,
        is_push_back: bool = False,
        is_too_long: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class
        self.message = message
        self.asks_again = asks_again
        self.is_misconfigured = is_misconfigured
        self.is_push_back = is_push_back
        self.is_too_long = is_too_long
        self.retry_after = retry_after


def bad_response(message: str) -> RequestFailure:
    """Bytes that are no answer; asking again may bring one."""
    return RequestFailure("bad-response", message)


def from_status(status: int, headers: Mapping[str, str], body: bytes) -> RequestFailure:
    """What an HTTP status other than 200 means.

    Args:
        status: of the reply.
        headers: of the reply; ``retry-after`` and ``location`` are read.
        body: its beginning, quoted in the message.
    """
    said = server_words(body)
    message = f"HTTP {status}{': ' + said if said else ''}"
    if 300 <= status < 400:
        where = one_line(headers.get("location", ""))[:SHOWN_CHARACTERS]
        message = f"HTTP {status}: the address moved to {where or 'elsewhere'}"
        return RequestFailure("refused", message, asks_again=False, is_misconfigured=True)
    if status in _MISCONFIGURED or (status == 429 and _USED_UP.search(said)):
        return RequestFailure("refused", message, asks_again=False, is_misconfigured=True)
    if status in _AGAIN or status >= 500:
        error_class: ErrorClass = {429: "rate-limit", 408: "timeout"}.get(status, "server")  # pyright: ignore[reportAssignmentType]
        wait = retry_after_seconds(headers.get("retry-after")) if status in _SLOWED else None
        return RequestFailure(error_class, message, is_push_back=status in _SLOWED, retry_after=wait)
    if status < 400:
        return bad_response(f"HTTP {status} instead of 200")
    return RequestFailure("refused", message, asks_again=False, is_too_long=status == 413 or bool(_TOO_LONG.search(said)))


def from_error_object(error: Any) -> RequestFailure:
    """What an error object means that came with status 200, whole or within a stream: by its own code, else the server's failure."""
    fields = error if isinstance(error, Mapping) else {"message": error}
    said = _words(fields)
    code = fields.get("code", fields.get("status_code"))
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        failure = from_status(code, {}, b"")
        failure.message = f"error {code} instead of an answer: {said}"
        failure.is_too_long = failure.error_class == "refused" and bool(_TOO_LONG.search(said))
        return failure
    if "rate_limit" in said or "overloaded" in said.lower():
        return RequestFailure("rate-limit", f"error instead of an answer: {said}", is_push_back=True)
    return RequestFailure("server", f"error instead of an answer: {said}")


def from_exception(error: Exception, *, has_begun: bool = False) -> RequestFailure:
    """What an exception of the transport means.

    Args:
        error: from httpx, asyncio or the operating system.
        has_begun: part of the answer was there already.
    """
    said = one_line(str(error))[:SHOWN_CHARACTERS]
    name = type(error).__name__
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        what = "the answer stopped for too long" if has_begun else f"no answer in time ({name})"
        return RequestFailure("timeout", what, is_push_back=True)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return RequestFailure("refused", f"cannot be asked: {said}", asks_again=False, is_misconfigured=True)
    if _is_certificate(error):
        return RequestFailure("connection", f"its certificate is not trusted: {said}", asks_again=False, is_misconfigured=True)
    if has_begun:
        return bad_response(f"the connection broke within the answer ({said or name})")
    return RequestFailure("connection", f"no connection ({said or name})")


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def server_words(body: bytes) -> str:
    """What the body of an error says, on one line and short; the message alone where it is the usual JSON."""
    try:
        value = parse_json(body)
    except UntrustedInputError:
        return one_line(body[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace"))[:SHOWN_CHARACTERS]
    if isinstance(value, Mapping):
        inner = value.get("error", value)
        return _words(inner if isinstance(inner, Mapping) else {"message": inner})
    return one_line(str(value))[:SHOWN_CHARACTERS]


def _words(fields: Mapping[str, Any]) -> str:
    message = fields.get("message", fields.get("detail"))
    parts = [str(fields[key]) for key in ("type", "code") if isinstance(fields.get(key), str)]
    text = str(message if message is not None else dict(fields))
    return one_line(f"{text} ({', '.join(parts)})" if parts else text)[:SHOWN_CHARACTERS]
