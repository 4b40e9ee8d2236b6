"""What statuses, error objects and exceptions of the transport mean; beside what OpenAI's own client asks again for."""

from __future__ import annotations

import json
import ssl

import httpx
import httpx2
import openai
import pytest

from ms4_evals.clients.endpoint.failures import from_error_object, from_exception, from_status, server_words


def error_body(message: str, **fields: object) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()


def test_the_same_statuses_are_asked_again_for_as_openai_does():
    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")
    for status in (*range(400, 432), 451, 499, *range(500, 512), 520, 524, 529):
        response = httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1:1/v1"))
        # 425 (too early) is ours: the standard says that the client may try again, RFC 8470 section 5.2.
        assert from_status(status, {}, b"").asks_again == (client._should_retry(response) or status == 425), status


@pytest.mark.parametrize(
    ("status", "error_class", "pushes_back", "misconfigured"),
    [
        (400, "refused", False, False),
        (401, "refused", False, True),
        (402, "refused", False, True),
        (403, "refused", False, True),
        (404, "refused", False, True),
        (301, "refused", False, True),
        (408, "timeout", True, False),
        (409, "server", False, False),
        (413, "refused", False, False),
        (422, "refused", False, False),
        (429, "rate-limit", True, False),
        (500, "server", False, False),
        (503, "server", True, False),
        (529, "server", True, False),
        (204, "bad-response", False, False),
    ],
)
def test_classes(status, error_class, pushes_back, misconfigured):
    failure = from_status(status, {"retry-after": "3", "location": "https://elsewhere.example/v1"}, error_body("no"))
    assert (failure.error_class, failure.is_push_back, failure.is_misconfigured) == (error_class, pushes_back, misconfigured)
    assert failure.retry_after == (3.0 if pushes_back else None)
    assert str(status) in failure.message


def test_a_quota_that_is_used_up_does_not_come_back_by_waiting():
    failure = from_status(429, {}, error_body("You exceeded your current quota", type="insufficient_quota", code="insufficient_quota"))
    assert failure.is_misconfigured
    assert not failure.asks_again


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "the request exceeds the available context size, try increasing it",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Input is too long for requested model.",
    ],
)
def test_too_long_is_told_from_other_refusals(message):
    assert from_status(400, {}, error_body(message)).is_too_long
    assert not from_status(400, {}, error_body("Unknown parameter: top_k")).is_too_long


@pytest.mark.parametrize(
    ("error", "error_class", "asks_again"),
    [
        ({"message": "engine died", "code": 500}, "server", True),
        ({"message": "slow down", "code": "429"}, "rate-limit", True),
        ({"message": "maximum context length is 10", "code": 400}, "refused", False),
        ({"message": "Overloaded", "type": "overloaded_error"}, "rate-limit", True),
        ({"message": "what"}, "server", True),
        ("plain text", "server", True),
        ({"code": True, "message": None}, "server", True),
    ],
)
def test_errors_with_status_200(error, error_class, asks_again):
    failure = from_error_object(error)
    assert (failure.error_class, failure.asks_again) == (error_class, asks_again)


@pytest.mark.parametrize(
    ("error", "begun", "error_class"),
    [
        (httpx.ConnectError("All connection attempts failed"), False, "connection"),
        (httpx.ReadError("reset"), False, "connection"),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), False, "connection"),
        (ConnectionResetError(), False, "connection"),
        (httpx.RemoteProtocolError("peer closed connection without sending complete message body"), True, "bad-response"),
        (httpx.ConnectTimeout("x"), False, "timeout"),
        (httpx.ReadTimeout("x"), True, "timeout"),
        (TimeoutError(), True, "timeout"),
    ],
)
def test_exceptions(error, begun, error_class):
    failure = from_exception(error, has_begun=begun)
    assert failure.error_class == error_class
    assert failure.asks_again


def test_what_no_attempt_would_change():
    certificate = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    certificate.__cause__ = ssl.SSLCertVerificationError()
    for error in (certificate, httpx.UnsupportedProtocol("no"), httpx.LocalProtocolError("illegal header value")):
        assert from_exception(error).is_misconfigured


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}', "no such model (NotFoundError)"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "model not loaded"}', "model not loaded"),
        (b'{"object":"error","message":"too\\nbad","type":"X"}', "too bad (X)"),
        (b"<html>\x1b[31m 502 </html>", "<html>\N{REPLACEMENT CHARACTER}[31m 502 </html>"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"", ""),
        (b"[1]", "[1]"),
    ],
)
def test_the_words_of_servers(body, words):
    assert server_words(body) == words
    assert len(server_words(b"x" * 10**6)) == 400
    assert len(server_words(error_body("y" * 10**5))) == 400
