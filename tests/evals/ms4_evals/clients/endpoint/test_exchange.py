"""One request over a real connection, beside what OpenAI's own client reads from the same server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
from support.flaky_answers import STYLES, Rule
from support.flaky_faults import FAULTS
from support.flaky_server import MODEL, FlakyServer

from ms4_evals.clients.endpoint.exchange import Call, Exchanged, exchange
from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.servers.kinds import KINDS

KIND_OF = {"vllm": "vllm", "sglang": "sglang", "mistral": "mistral", "tags": "openai"}
EXPECTED = {
    "429-seconds": "rate-limit",
    "429-date": "rate-limit",
    "429-garbage": "rate-limit",
    "500": "server",
    "503": "server",
    "error-object": "server",
    "reset": "connection",
    "close": "connection",
    "hang": "timeout",
    "hang-within": "timeout",
}
"""Everything else is a bad response; ``wrong-model`` and ``duplicate`` are seen by comparison only, elsewhere."""


def ask(url: str, body: dict, *, kind: str = "vllm", timeout: float = 5.0, max_tokens: int = 500) -> tuple[Exchanged, int]:
    async def sent() -> tuple[Exchanged, int]:
        chunks: list[None] = []
        async with httpx.AsyncClient() as client:
            call = Call(
                url + "/chat/completions",
                {"Content-Type": "application/json"},
                json.dumps(body).encode(),
                bool(body.get("stream")),
                timeout,
                max_tokens,
            )
            return await exchange(client, call, KINDS[kind], lambda: chunks.append(None)), len(chunks)

    return asyncio.run(sent())


def body_of(question: str = "What is 2 + 3?", *, stream: bool = True, effort: str = "high") -> dict:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 500, "reasoning_effort": effort}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


@pytest.mark.parametrize("style", STYLES)
def test_streamed_and_whole_are_the_same_and_as_openai_reads_them(style):
    with FlakyServer(rule=Rule({"2 + 3": "5"}), style=style) as server:
        streamed, chunks = ask(server.base_url, body_of(), kind=KIND_OF[style])
        whole, none = ask(server.base_url, body_of(stream=False), kind=KIND_OF[style])
        reply, same = streamed.reply, whole.reply
        assert (reply.thinking, reply.answer, reply.usage, reply.finish_reason) == (same.thinking, same.answer, same.usage, "stop")
        assert reply.thinking.startswith("Let me see. well well")
        assert "\\boxed" in reply.answer
        assert (reply.text_chunks, none) == (chunks, 0)
        assert 0 < streamed.first_token_seconds <= streamed.seconds
        if style in {"vllm", "sglang"}:
            client = openai.OpenAI(api_key="x", base_url=server.base_url)
            completion = client.chat.completions.create(**body_of(stream=False))
            assert completion.choices[0].message.content == reply.answer
            pieces = client.chat.completions.create(**body_of())
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == reply.answer
            assert completion.usage.completion_tokens == reply.usage.completion_tokens


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in {"drip", "wrong-model", "duplicate"}])
def test_every_fault_is_a_failure_of_its_class(fault, stream):
    with FlakyServer(faults=1.0, kinds=[fault]) as server:
        start = time.monotonic()
        with pytest.raises(RequestFailure) as caught:
            ask(server.base_url, body_of(stream=stream), timeout=0.4)
        assert time.monotonic() - start < 3
    assert caught.value.error_class == EXPECTED.get(fault, "bad-response")
    assert caught.value.asks_again


def test_a_slow_drip_is_an_answer():
    with FlakyServer(faults=1.0, kinds=["drip"]) as server:
        dripped, _ = ask(server.base_url, body_of(), timeout=0.4)
        server.faults = 0.0
        assert dripped.reply == ask(server.base_url, body_of())[0].reply


@contextmanager
def raw_server(reply: bytes, *, then: bytes = b"", every: float = 0.0) -> Iterator[str]:
    """Answers one connection with bytes, then with others again and again."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            try:
                connection.sendall(reply)
                while then:
                    connection.sendall(then)
                    time.sleep(every)
            except OSError:
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        thread.join(10)
        listener.close()


EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def test_a_server_that_only_keeps_the_connection_alive_is_given_up():
    with raw_server(EVENT_STREAM, then=b": ping\n\n", every=0.02) as url:
        start = time.monotonic()
        with pytest.raises(RequestFailure) as caught:
            ask(url, body_of(), timeout=0.05)
        # No silence is longer than the 0.05 s, so it is the bound on the whole that ends it: twenty times as long.
        assert 0.9 < time.monotonic() - start < 3
    assert caught.value.error_class == "timeout"


def test_an_endless_reply_is_given_up_by_its_size(monkeypatch):
    monkeypatch.setattr("ms4_evals.clients.endpoint.exchange.BASE_BYTES", 100_000)
    monkeypatch.setattr("ms4_evals.clients.endpoint.exchange.BYTES_PER_TOKEN", 1)
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"x" * 5000 + b'"}}]}\n\n'
    for head in (EVENT_STREAM, EVENT_STREAM.replace(b"text/event-stream", b"application/json")):
        with raw_server(head, then=event) as url, pytest.raises(RequestFailure, match="more than 100,010 bytes"):
            ask(url, body_of(), max_tokens=10)


def test_a_compressed_reply_is_refused_unread():
    with (
        raw_server(EVENT_STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"\x1f\x8b") as url,
        pytest.raises(RequestFailure, match="encoding gzip"),
    ):
        ask(url, body_of())


def test_a_whole_reply_to_a_request_for_a_stream_is_read():
    with FlakyServer() as server:
        expected, _ = ask(server.base_url, body_of(stream=False))
    body = {"choices": [{"index": 0, "message": {"content": expected.reply.answer}, "finish_reason": "stop"}]}
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    with raw_server(head + json.dumps(body).encode()) as url:
        assert ask(url, body_of())[0].reply.answer == expected.reply.answer


def test_what_follows_done_does_not_matter():
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "42"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    # The length says that more must come; the answer is complete all the same.
    head = EVENT_STREAM.replace(b"\r\n\r\n", b"\r\nContent-Length: 100000\r\n\r\n")
    with raw_server(head + event) as url:
        assert ask(url, body_of())[0].reply.answer == "42"


def test_an_error_that_never_ends_is_cut_short():
    with raw_server(b"HTTP/1.1 400 Bad\r\n\r\n", then=b"words " * 1000) as url:
        with pytest.raises(RequestFailure) as caught:
            ask(url, body_of())
        assert caught.value.error_class == "refused"
        assert len(caught.value.message) < 500
