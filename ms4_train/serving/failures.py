"""Errors in OpenAI's form, each with its own status: what a client did wrong, or what it should wait for.

    400 the request (``param`` names the field)      413 a body too large          429 overloaded (Retry-After)
    401 no key, or a wrong one                       415 a body that is no JSON    503 stopping, or the engine failed
    403 a host name that is not served               408 a body that came slowly   504 the answer took too long
    404 no such model or path

Exercise it: ``pytest tests/ms4_train/serving/test_failures.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ms4_train.errors import AdapterError, EngineError, MS4Error

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
STATUSES = tuple(status for status in _TYPES if status != 405)
MAX_MESSAGE = 1000
# What the engine's fields are called in a request, where the names differ.
_PARAMS = {"thinking_budget": "thinking_token_budget", "include_stop": "include_stop_str_in_output"}


class ApiError(MS4Error):
    """An error that a client is told about.

    Args:
        status: of the HTTP response.
        message: what is wrong, in one sentence; never more than the client itself sent or may know.
        param: the field of the request, as ``messages[0].content``.
        code: a stable name of the fault.
        retry_after: seconds that the client should wait.
        close: whether the connection ends with the response.
    """

    code = "api"

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str, retry_after: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message, key=param)
        self.status = status
        self.param = param
        self.error_code = code
        self.retry_after = retry_after
        self.close = close
        self.request_id: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[: MAX_MESSAGE - 3] + "..."
        return {
            "error": {"message": message, "type": _TYPES.get(self.status, "server_error"), "param": self.param, "code": self.error_code}
        }

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.request_id is not None:
            headers["X-Request-Id"] = self.request_id
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers | ({"Connection": "close"} if self.close else {})


def bad_request(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """The error of a request that cannot be served as it is."""
    return ApiError(400, message, param=param, code=code)


def from_ms4_error(error: MS4Error, *, form_field: str | None = None) -> ApiError:
    """What our own checks found wrong with a request.

    Args:
        error: its ``key`` is the field where it is one of the request's; file names, which are ours, are left out.
        form_field: the field that asks for a form, which the engine calls a constraint.
    """
    if isinstance(error, ApiError):
        return error
    key = error.key
    if isinstance(error, EngineError | AdapterError):
        # The engine names a request by its id, which says nothing to the client.
        key = _PARAMS.get(key, key) if key is not None and key.isidentifier() else None
        key = form_field if key == "constraint" else key
    text = f"{error.message} {error.fix[:1].upper()}{error.fix[1:]}" if error.fix else error.message
    if key is not None:
        text = f"{key}: {text}"  # such messages have no subject of their own, and clients print the message alone
    return ApiError(400, text, param=key, code=getattr(error, "row_code", error.code))


def engine_failure(error: BaseException | None) -> ApiError:
    """The error of an answer that the engine could not finish; what went wrong inside is logged, not told."""
    name = type(error).__name__ if error is not None else "it stopped"
    return ApiError(503, f"The engine could not finish this answer ({name}).", code="engine_failed")


def from_validation(error: ValidationError, value: Any) -> ApiError:
    """The deepest of a body's faults: of alternatives (text, or a list of parts) it is the one that the client meant.

    Args:
        error: pydantic's.
        value: the body that was validated.
    """
    first = error.errors()[0]["loc"][:1]
    faults = [fault for fault in error.errors(include_url=False, include_input=False) if fault["loc"][:1] == first]
    places = [_place(fault["loc"], value, is_name=fault["type"] in ("missing", "extra_forbidden")) for fault in faults]
    index = max(range(len(faults)), key=lambda number: len(places[number]))
    kind, param = faults[index]["type"], _spelled(places[index])
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown field: {param}.", param=param, code="unknown_field")
    if kind == "missing":
        return ApiError(400, f"Missing field: {param}.", param=param, code="missing_field")
    message = faults[index]["msg"].removeprefix("Value error, ")
    return ApiError(400, f"Invalid {param or 'body'}: {message}.", param=param or None, code="invalid_value")


def _place(location: tuple[int | str, ...], value: Any, *, is_name: bool) -> list[int | str]:
    """The path of a fault inside ``value``, without the names of alternatives that pydantic puts between."""
    place: list[int | str] = []
    for number, step in enumerate(location):
        inside = (isinstance(value, Mapping) and step in value) or (isinstance(value, list) and isinstance(step, int) and step < len(value))
        if inside:
            value = value[step]  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif not (is_name and number == len(location) - 1):
            continue
        place.append(step)
    return place


def _spelled(place: list[int | str]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    return text if len(text) <= 200 else text[:197] + "..."
