"""The life of a call: each kind of failure has its own status, clients that vanish free the engine, what happened is logged and counted."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from support.images import blank_png, data_url
from support.served import NAME, Served, served, tiny_engine

from ms4_train.inference.run import Run

USER: list[Any] = [{"role": "user", "content": "Hello"}]
LONG = {"model": NAME, "messages": USER, "max_tokens": 900, "ignore_eos": True}


def post(server: Served, body: Any, path: str = "chat/completions", **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | options.pop("headers", {})
    return httpx.post(f"{server.url}/v1/{path}", content=content, headers=headers, timeout=60, **options)


def vanish(server: Served, body: dict[str, Any]) -> None:
    """Send a request, wait until the engine works on it, and close the connection."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + data)
        end = time.monotonic() + 20
        while not server.thread.stats.running:
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[1]", 400, None),
        ({"model": NAME}, 400, "messages"),
        ({"model": NAME, "messages": USER, "best": 1}, 400, "best"),
        ({"model": NAME, "messages": USER, "n": 5}, 400, "n"),
        ({"model": NAME, "messages": USER, "max_tokens": 5000}, 400, "max_tokens"),
        ({"model": NAME, "messages": USER, "reasoning_effort": "low"}, 400, "reasoning_effort"),
        ({"model": NAME, "messages": [{"role": "assistant", "content": "x"}]}, 400, "messages[0]"),
        ({"model": NAME, "messages": [{"role": "user", "content": " "}]}, 400, "messages[0]"),
        ({"model": NAME, "messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
        ({"model": NAME, "messages": USER, "tool_choice": "required"}, 400, "tool_choice"),
        ({"model": NAME, "messages": USER, "logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"model": NAME, "messages": USER, "guided_regex": "("}, 400, "guided_regex"),
        ({"model": "gpt-4o", "messages": USER}, 404, "model"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_every_fault_has_its_status_and_field(server: Served, body: Any, status: int, param: str | None) -> None:
    response = post(server, body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")
    server.wait_idle()


def test_the_clients_errors_are_of_the_right_kind(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=NAME, messages=USER, temperature=9)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=USER)


def test_an_image_for_a_model_without_vision(server: Served) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url(blank_png(30, 30))}}]
    response = post(server, {"model": NAME, "messages": [{"role": "user", "content": parts}]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0].content[0]")


def test_keys() -> None:
    with served(api_keys=("right",), metrics_need_key=True) as locked:
        for key in ("wrong", ""):
            with pytest.raises(openai.AuthenticationError):
                locked.client(key or "x").models.list()
        assert locked.client("right").models.list().data[0].id == NAME
        assert httpx.get(f"{locked.url}/health").status_code == 200
        assert httpx.get(f"{locked.url}/metrics").status_code == 401
        # A request without a key is refused before its body comes.
        with socket.create_connection(("127.0.0.1", locked.port)) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 40000000\r\n\r\n")
            raw.settimeout(10)
            assert b" 401 " in raw.recv(100)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_request(server: Served, stream: bool) -> None:
    before = server.thread.stats
    vanish(server, LONG | {"stream": stream, "n": 2})
    server.wait_idle()
    after = server.thread.stats
    assert after.finished["cancelled"] - before.finished.get("cancelled", 0) == 2
    assert after.generated_tokens - before.generated_tokens < 2 * 900
    assert after.blocks_used == 0


def test_overload_is_told_with_when_to_come_back() -> None:
    with served(max_answers=2) as small:
        with httpx.stream("POST", f"{small.url}/v1/chat/completions", json=LONG | {"stream": True, "n": 2}, timeout=30) as held:
            assert held.status_code == 200
            response = post(small, {"model": NAME, "messages": USER, "max_tokens": 2})
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert response.json()["error"]["type"] == "rate_limit_error"
        small.wait_idle()
        assert post(small, {"model": NAME, "messages": USER, "max_tokens": 2}).status_code == 200
        assert post(small, {"model": NAME, "messages": USER, "n": 3}).json()["error"]["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream: bool) -> None:
    with served(tiny_engine(max_context=4096), request_seconds=0.15) as hasty:
        response = post(hasty, LONG | {"stream": stream, "max_tokens": 4000})
        if stream:
            *_, error, done = [line for line in response.text.splitlines() if line.startswith("data: ")]
            assert done == "data: [DONE]"
            assert json.loads(error[6:])["error"]["code"] == "timeout"
        else:
            assert (response.status_code, response.json()["error"]["type"]) == (504, "timeout_error")
        hasty.wait_idle()


def test_a_step_that_fails_fails_its_answers_only(server: Served, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.step

    def fail(run: Run) -> Any:
        monkeypatch.setattr(Run, "step", real)
        raise MemoryError("inside")

    for stream in (False, True):
        monkeypatch.setattr(Run, "step", fail)
        response = post(server, {"model": NAME, "messages": USER, "max_tokens": 4, "stream": stream})
        assert "inside" not in response.text
        assert response.status_code == (200 if stream else 503)
        assert "engine_failed" in response.text
    server.wait_idle()
    assert client.chat.completions.create(model=NAME, messages=USER, max_tokens=2).usage is not None


def test_a_silent_stream_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.step

    def slow(run: Run) -> Any:
        time.sleep(0.15)
        return real(run)

    monkeypatch.setattr(Run, "step", slow)
    with served(keep_alive_seconds=0.05) as quiet:
        text = post(quiet, {"model": NAME, "messages": USER, "max_tokens": 3, "stream": True}).text
    assert ": keep-alive\n\n" in text
    assert text.endswith("data: [DONE]\n\n")


def test_the_log_has_numbers_and_no_contents(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ms4_train.serving"):
        post(server, {"model": NAME, "messages": [{"role": "user", "content": "Sesame"}], "max_tokens": 3, "seed": 1, "ignore_eos": True})
        post(server, {"model": NAME, "messages": USER, "Sesame\nopen": 1})
    lines = [record.getMessage() for record in caplog.records if record.name == "ms4_train.serving"]
    assert [("status=200" in line, "status=400" in line) for line in lines] == [(True, False), (False, True)]
    assert "outcome=length" in lines[0]
    assert "generated=3" in lines[0]
    assert "Sesame" not in caplog.text


def test_metrics_count_requests(server: Served) -> None:
    def counted() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        wanted = 'ms4_requests_total{endpoint="chat",outcome="model_not_found",status="404"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))

    before = counted()
    post(server, {"model": "nobody", "messages": USER})
    assert counted() == before + 1
