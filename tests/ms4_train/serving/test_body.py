"""Bodies: too large, too slow, too deep, no JSON, or cut off; each with its own error, and the memory counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from ms4_train.serving.admission import Admission
from ms4_train.serving.body import ClientGoneError, parse_body, read_body
from ms4_train.serving.failures import ApiError
from ms4_train.serving.settings import ServerSettings

SETTINGS = ServerSettings("m", max_body_bytes=100, max_json_values=50, max_held_bytes=150, body_seconds=0.05)


def read(messages: list[dict[str, Any]], *, headers: dict[str, str] | None = None, admission: Admission | None = None) -> bytes:
    """``read_body`` of a request whose client sends ``messages``, and then nothing."""
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        for message in left:
            return message
        await asyncio.sleep(60)
        raise AssertionError

    raw = [(name.encode(), value.encode()) for name, value in ({"content-type": "application/json"} | (headers or {})).items()]
    request = Request({"type": "http", "method": "POST", "headers": raw}, receive)
    return asyncio.run(read_body(request, (admission or Admission(1, 150)).enter(), SETTINGS))


def piece(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def refused(function, *arguments, **named) -> ApiError:
    with pytest.raises(ApiError) as caught:
        function(*arguments, **named)
    return caught.value


def test_pieces_are_joined_and_held() -> None:
    admission = Admission(1, 150)
    assert read([piece(b"ab", more=True), piece(b"c")], admission=admission) == b"abc"
    assert admission.held_bytes == 3


def test_too_large_by_its_own_word_and_in_fact() -> None:
    assert refused(read, [piece(b"")], headers={"content-length": "101"}).status == 413
    assert refused(read, [piece(b"")], headers={"content-length": "9" * 5000}).status == 413
    assert refused(read, [piece(b"x" * 60, more=True), piece(b"x" * 60)]).status == 413


def test_all_bodies_together_are_bounded() -> None:
    admission = Admission(2, 150)
    read([piece(b"x" * 90)], admission=admission)
    assert refused(read, [piece(b"x" * 90)], admission=admission).status == 429


def test_too_slow() -> None:
    error = refused(read, [piece(b"x", more=True)])
    assert (error.status, error.close) == (408, True)


def test_a_client_that_goes_away() -> None:
    with pytest.raises(ClientGoneError):
        read([piece(b"x", more=True), {"type": "http.disconnect"}])


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_browser_sends_to_anybody_is_refused(kind: str) -> None:
    assert refused(read, [piece(b"{}")], headers={"content-type": kind}).status == 415


def test_json_with_parameters_is_json() -> None:
    assert read([piece(b"{}")], headers={"content-type": "Application/JSON; charset=utf-8"}) == b"{}"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"3", b"null", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b"\xff\xfe", b"{'a': 1}"],
)
def test_what_is_no_object_of_strict_json(data: bytes) -> None:
    error = refused(parse_body, data, SETTINGS)
    assert (error.status, error.error_code) == (400, "invalid_json")


def test_deep_and_wide_bodies() -> None:
    generous = ServerSettings("m")
    assert refused(parse_body, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", generous).status == 400
    assert refused(parse_body, b'{"a": [' + b"[]," * 30 + b"1]}", SETTINGS).status == 413
    assert parse_body(b'{"a": [1, 2]}', SETTINGS) == {"a": [1, 2]}
