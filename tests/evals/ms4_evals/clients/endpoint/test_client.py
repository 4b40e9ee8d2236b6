"""The client as the runner sees it: identity, one call per request, memory, keys, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest
from support.endpoint_requests import answers, quick, requests, section, texts
from support.flaky_server import MODEL, TESTS, FlakyServer

from ms4_evals.clients.base import SampleRequest
from ms4_evals.clients.endpoint.client import EndpointClient, check_extra_body
from ms4_evals.clients.servers.kinds import KINDS
from ms4_train.errors import EvaluationError

KEY = "sk-planted-9876543210"


def test_identity_names_the_model_and_not_the_address():
    with FlakyServer() as first, FlakyServer() as second:
        identities = [
            EndpointClient(section(url, kind="auto", extra_body={"top_k": 40})).identity() for url in (first.base_url, second.base_url)
        ]
        plain = {"vllm": dict(KINDS["vllm"].plain_sampling)}
        expected = {"endpoint_model": MODEL, "kind": "vllm", "extra_body": {"top_k": 40}, "plain_sampling": plain}
        assert identities[0] == identities[1] == expected
    named = section("http://127.0.0.1:9/v1")
    named = named.model_copy(update={"servers": [named.servers[0].model_copy(update={"model": "given"})]})
    # Nothing is left open, so nobody is asked.
    assert EndpointClient(named).identity()["endpoint_model"] == "given"
    assert set(EndpointClient(named).versions()) == {"python", "ms4-train", "httpx"}


def test_every_request_is_handed_over_once_in_this_thread_and_the_same_however_many_at_once():
    with FlakyServer() as server:
        threads = set()
        tokens: list[int] = []
        client = EndpointClient(section(server.base_url))
        client.answer(requests(20), lambda request, answer: threads.add(threading.get_ident()), tokens.append)
        assert threads == {threading.get_ident()}
        many = answers(client, requests(60))
        few = answers(EndpointClient(section(server.base_url, concurrency=1, stream=False)), requests(60))
        assert texts(many) == texts(few)
        first = answers(client, requests(20))
        # All tokens are told at the end, as the server counted them.
        assert tokens[-1] == sum(one.usage_tokens for one in first.values())
        client.answer([], lambda *_: None, tokens.append)
        client.close()


def test_prompts_are_built_for_what_is_in_flight_only():
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Text(str):
        __slots__ = ("__weakref__",)

    def build(number: int) -> list[dict[str, str]]:
        nonlocal most
        text = Text(f"{number} " * 1000)
        alive.add(text)
        most = max(most, len(alive))
        return [{"role": "user", "content": text}]

    def request(number: int) -> SampleRequest:
        return SampleRequest(f"p{number}", "none", 0, lambda: build(number), 0.0, 1.0, 100, number)

    with FlakyServer() as server:
        EndpointClient(section(server.base_url, concurrency=4)).answer([request(n) for n in range(100)], lambda *_: None, lambda _: None)
    assert 0 < most <= 5


def test_what_the_receiver_raises_ends_the_run():
    with FlakyServer() as server:
        client = EndpointClient(section(server.base_url, concurrency=8))

        def finish(request, answer) -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            client.answer(requests(100), finish, lambda _: None)
        assert server.attempts.total() <= 16
        with pytest.raises(KeyboardInterrupt):
            client.answer(requests(100), lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), lambda _: None)
        assert not any(one.error for one in answers(client, requests(5)).values())


@pytest.mark.parametrize("key", ["messages", "model", "stream", "n", "tools"])
def test_keys_that_would_change_the_question_are_refused(key):
    with pytest.raises(EvaluationError, match=f"extra_body.{key}"):
        EndpointClient(section("http://127.0.0.1:9/v1", extra_body={key: 1}))


def test_values_that_json_has_not_are_refused():
    for value in (float("nan"), {1, 2}):
        with pytest.raises(EvaluationError, match="JSON"):
            check_extra_body(section("http://127.0.0.1:9/v1").model_copy(update={"extra_body": {"x": value}}))
    check_extra_body(section("http://127.0.0.1:9/v1", extra_body={"chat_template_kwargs": {"x": None}}))


def test_in_a_running_loop_it_says_what_to_do():
    async def inside(client: EndpointClient) -> None:
        client.answer(requests(1), lambda *_: None, lambda _: None)

    with FlakyServer() as server, pytest.raises(EvaluationError, match=r"asyncio\.to_thread"):
        asyncio.run(inside(EndpointClient(section(server.base_url))))


def test_a_key_is_sent_and_appears_nowhere_else(monkeypatch, caplog, capfd):
    monkeypatch.setenv("PLANTED", KEY)
    caplog.set_level(logging.DEBUG)
    with FlakyServer(key=KEY, faults=0.5, kinds=["500", "cut"]) as server:
        servers = [{"base_url": server.base_url, "api_key_env": "PLANTED"}]
        client = EndpointClient(section(servers=servers), backoff=quick())
        seen = [repr(one) for one in answers(client, requests(20)).values()] + [json.dumps(dict(client.identity()))]
        seen += [repr(client), repr(client._targets), repr(client.versions())]
        # The server repeats the key it was given when it does not know it, as real ones do.
        server.key = "another"
        with pytest.raises(EvaluationError) as caught:
            answers(client, requests(20))
        with pytest.raises(EvaluationError) as from_start:
            EndpointClient(section(servers=servers)).identity()
    seen += [str(caught.value), str(from_start.value), caplog.text, *capfd.readouterr()]
    assert "***" in str(from_start.value)
    assert not [text for text in seen if KEY in text]
    # The control: the key did travel, or the server would have answered nothing.
    assert server.answered.total() == 20


def test_errors_of_samples_do_not_hold_the_key(monkeypatch):
    monkeypatch.setenv("PLANTED", KEY)
    with FlakyServer(key=KEY) as server:
        client = EndpointClient(section(servers=[{"base_url": server.base_url, "api_key_env": "PLANTED"}], max_attempts=1), backoff=quick())
        answers(client, requests(2))
        server.key = "another"
        found = answers(client, requests(3))
    assert {one.error for one in found.values()} == {"HTTP 401: Incorrect API key provided: Bearer *** (scripted)"}


CTRL_C = """
import sys, threading
from support.endpoint_requests import requests, section
from ms4_evals.clients.endpoint.client import EndpointClient
client = EndpointClient(section(sys.argv[1], concurrency=4))
print("ready", flush=True)
try:
    client.answer(requests(1000), lambda *_: print("one", flush=True), lambda _: None)
except KeyboardInterrupt:
    print("stopped", threading.active_count(), flush=True)
"""


def test_ctrl_c_stops_it_cleanly():
    root = TESTS.parent
    path = os.pathsep.join(str(root / folder) for folder in (".", "kernels", "recipes", "evals", "tests"))
    with FlakyServer(seconds=0.05, token_seconds=0.02) as server:
        command = [sys.executable, "-c", textwrap.dedent(CTRL_C), server.base_url]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert process.stdout is not None
        while process.stdout.readline().strip() != "one":
            assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert out.strip().splitlines()[-1] == "stopped 1"
    assert err == ""
    assert process.returncode == 0
