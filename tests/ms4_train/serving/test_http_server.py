"""Connections over real sockets: heads and readers that are too slow, too many of them, and an orderly end."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.served import NAME, Served, served, tiny_engine

from ms4_train.errors import ConfigError
from ms4_train.serving.http_server import bind

USER = [{"role": "user", "content": "Hello"}]


def connect(server: Served, *, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.port))
    return client


def raw_request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes the connection; waits for it."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("start", [b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nx: "])
def test_a_head_that_does_not_come_is_not_waited_for(start: bytes) -> None:
    with served(header_seconds=0.2) as server, connect(server) as client:
        client.sendall(start)
        assert is_closed(client)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_second_head_is_not_waited_for_either() -> None:
    with served(header_seconds=0.2) as server, connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += client.recv(4096)
        client.sendall(b"GET /hea")
        assert is_closed(client)


def test_too_many_connections_are_closed() -> None:
    with served(max_connections=3) as server:
        clients = [connect(server) for _ in range(3)]
        wait_for(lambda: len(server.server.server_state.connections) == 3)
        with connect(server) as one_more:
            assert is_closed(one_more)
        clients.pop().close()
        wait_for(lambda: len(server.server.server_state.connections) == 2)
        assert httpx.get(f"{server.url}/health").status_code == 200
        for client in clients:
            client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_reads_nothing_is_cut_off(stream: bool) -> None:
    """Logprobs make the answer a megabyte, so that no buffer on the way holds it."""
    with served(tiny_engine(max_context=4096), send_buffer=4096, stall_seconds=0.2) as server:
        tokens = 4000 if stream else 500  # a stream is cut off long before its end, a whole answer when it is there
        body = {"model": NAME, "messages": USER, "max_tokens": tokens, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
        with connect(server, receive_buffer=4096) as client:
            client.sendall(raw_request(body | {"stream": stream}))
            wait_for(lambda: server.service.admission.answers > 0)
            wait_for(lambda: not server.server.server_state.connections)
        server.wait_idle()
        assert server.service.admission.held_bytes == 0
        if stream:
            assert server.thread.stats.finished.get("cancelled") == 1
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_slow_reader_who_reads_gets_it_all() -> None:
    """The control: the same buffers and bounds, and a client that takes its time, but takes something."""
    with served(send_buffer=4096, stall_seconds=0.3) as server, connect(server, receive_buffer=4096) as client:
        body = {"model": NAME, "messages": USER, "max_tokens": 60, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
        client.sendall(raw_request(body | {"stream": True}))
        answer = b""
        began = time.monotonic()
        while not answer.endswith(b"0\r\n\r\n"):
            piece = client.recv(4096)
            assert piece, "it was cut off"
            answer += piece
            time.sleep(0.02)
        assert answer.count(b"data: ") > 2
        assert b"data: [DONE]" in answer
        assert time.monotonic() - began > 0.3


def test_heads_are_bounded(server: Served) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n")
        answer = client.recv(4096)
        assert b" 400 " in answer or answer == b""


def test_bodies_are_refused_before_they_are_read(server: Served) -> None:
    with connect(server) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n")
        assert b" 413 " in client.recv(4096)
        client.sendall(b"x" * 1000)


def stop_during_an_answer(server: Served, max_tokens: int, between: Callable[[], None] = lambda: None) -> httpx.Response:
    """Ask for an answer, signal the server's end while it is made; returns the answer."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"model": NAME, "messages": USER, "max_tokens": max_tokens, "ignore_eos": True}
        answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: server.thread.stats.running > 0)
    server.server.handle_exit(15, None)
    between()
    asking.join(timeout=60)
    return answers[0]


def test_the_first_signal_lets_answers_end() -> None:
    with served(tiny_engine(max_context=4096), drain_seconds=60) as server:

        def try_it() -> None:
            body = {"model": NAME, "messages": USER}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 503
            assert httpx.get(f"{server.url}/health", timeout=60).status_code == 503

        answer = stop_during_an_answer(server, 500, try_it)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 500


def test_after_its_time_answers_are_given_up() -> None:
    with served(tiny_engine(max_context=4096), drain_seconds=0.2) as server:
        answer = stop_during_an_answer(server, 4000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")


def test_an_address_that_is_taken() -> None:
    listener = bind("127.0.0.1", 0)
    with listener, pytest.raises(ConfigError, match="cannot listen"):
        bind("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(ConfigError):
        bind("no.such.host.invalid", 0)


def test_no_file_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with served() as server:
        httpx.get(f"{server.url}/health")
        before = count()
        for _ in range(20):
            with connect(server) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                client.recv(10)
        wait_for(lambda: count() <= before)
