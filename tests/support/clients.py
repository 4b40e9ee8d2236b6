"""Clients of a server under load: honest ones who know the right answers, and hostile ones of several kinds."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from support.images import blank_png, bomb, data_url
from support.served import NAME, Served

from ms4_train.chat import ChatTokenizer, parse_answer
from ms4_train.inference import Engine, SamplingParams, chat_request

Question = dict[str, Any]
"""A chat request as OpenAI's clients send it."""


def questions(count: int, *, images: bool) -> list[Question]:
    """Different requests: both modes, greedy and sampled, short and long, some with an image, many with a beginning in common."""
    made: list[Question] = []
    for number in range(count):
        text = f"{'Here is the same beginning. ' * (number % 5)}Question {number}?"
        content: Any = text
        if images and number % 6 == 5:
            picture = {"type": "image_url", "image_url": {"url": data_url(blank_png(30 + 20 * number, 40))}}
            content = [{"type": "text", "text": text}, picture]
        made.append(
            {
                "model": NAME,
                "messages": [{"role": "user", "content": content}],
                "reasoning_effort": "high" if number % 2 else "none",
                "temperature": 0.0 if number % 3 else 0.9,
                "seed": number,
                "max_tokens": 4 + 3 * (number % 7),
            }
        )
    return made


def solo_answers(engine: Engine, tokenizer: ChatTokenizer, asked: Sequence[Question]) -> list[str]:
    """What the engine answers each question when it is alone."""
    found = []
    for question in asked:
        sampling = SamplingParams(temperature=question["temperature"], seed=question["seed"], max_tokens=question["max_tokens"])
        request = chat_request(
            tokenizer, question["messages"], request_id="solo", reasoning_effort=question["reasoning_effort"], sampling=sampling
        )
        (completion,) = engine.generate([request])
        answer = parse_answer(completion.token_ids, tokenizer)
        found.append(answer.thinking + "|" + answer.content + "|" + str(completion.generated_tokens))
    return found


class Crowd:
    """Clients that ask until they are told to stop, each in a thread of its own, and compare what they get.

    Attributes:
        right: answers that were as expected.
        wrong: what was not, in words.
    """

    def __init__(self, server: Served, asked: Sequence[Question], expected: Sequence[str], size: int) -> None:
        self.right = 0
        self.wrong: list[str] = []
        self._server = server
        self._asked = asked
        self._expected = expected
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(size)]

    def run(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Ask for ``seconds``, and until ``meanwhile`` has returned."""
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + seconds
        try:
            meanwhile()
            time.sleep(max(0.0, end - time.monotonic()))
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(timeout=120)
                assert not thread.is_alive(), "a client still waits for its answer"

    def _work(self, number: int) -> None:
        order = random.Random(number)
        with httpx.Client(base_url=self._server.url, timeout=120) as client:
            while not self._stop.is_set():
                index = order.randrange(len(self._asked))
                try:
                    got = _ask(client, self._asked[index], stream=order.random() < 0.5)
                except Exception as error:
                    got = f"{type(error).__name__}: {error}"
                with self._lock:
                    if got == self._expected[index]:
                        self.right += 1
                    else:
                        self.wrong.append(f"question {index}: {got[:200]} instead of {self._expected[index][:200]}")


def _ask(client: httpx.Client, question: Question, *, stream: bool) -> str:
    if not stream:
        response = client.post("/v1/chat/completions", json=question)
        response.raise_for_status()
        body = response.json()
        message = body["choices"][0]["message"]
        return message.get("reasoning_content", "") + "|" + (message["content"] or "") + "|" + str(body["usage"]["completion_tokens"])
    thinking = content = ""
    tokens, is_done = 0, False
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=question | options) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                is_done = True
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                thinking += choice["delta"].get("reasoning_content", "")
                content += choice["delta"].get("content") or ""
            tokens = chunk["usage"]["completion_tokens"] if chunk["usage"] else tokens
    return thinking + "|" + content + "|" + str(tokens) if is_done else "cut off"


def hostile_round(server: Served, seed: int) -> Counter[str]:
    """One of each kind of bad client; returns how often each was answered as it should be."""
    found: Counter[str] = Counter()
    long = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "ignore_eos": True}
    url = f"{server.url}/v1/chat/completions"
    kinds: dict[str, tuple[Any, int]] = {
        "malformed": (b'{"model": ', 400),
        "deep": (b'{"model": ' + b"[" * 50_000, 400),
        "wide": (b'{"model": [' + b"[]," * 1_200_000 + b"1]}", 413),
        "oversized": (b" " * (server.service.settings.max_body_bytes + 1), 413),
        "unknown field": (json.dumps(long | {"x" * 1000: 1}).encode(), 400),
        "long prompt": (json.dumps(long | {"messages": [{"role": "user", "content": "y" * 3_000_000}]}).encode(), 400),
        "huge image": (_with_image(long, blank_png(16_000, 16_000)), 400),
        "bomb": (_with_image(long, bomb(3_000)), 400),
        "no image": (_with_image(long, b"GIF89a" + bytes(200_000)), 400),
    }
    for kind, (body, status) in kinds.items():
        response = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60)
        found[f"{kind} {response.status_code}"] += response.status_code == status and "error" in response.json()
    for stream in (True, False):
        for _ in range(3):
            found["vanished"] += vanish(server, long | {"stream": stream}, seconds=random.Random(seed).uniform(0, 0.05))
    with connect_without_reading(server, long | {"stream": True, "logprobs": True, "top_logprobs": 20}) as slow:
        end = time.monotonic() + 30
        while time.monotonic() < end and not found["slow reader cut off"]:
            time.sleep(0.02)
            found["slow reader cut off"] = int(_is_cut(server, slow))
    return found


def _with_image(question: Question, data: bytes) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": data_url(data)}}]
    return json.dumps(question | {"messages": [{"role": "user", "content": content}]}).encode()


def request_bytes(body: dict[str, Any]) -> bytes:
    """The request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def vanish(server: Served, body: dict[str, Any], seconds: float) -> int:
    """Ask, and close the connection after ``seconds``."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request_bytes(body))
        time.sleep(seconds)
    return 1


@contextlib.contextmanager
def connect_without_reading(server: Served, body: dict[str, Any]):
    """A client with a small buffer that asks and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request_bytes(body))
        yield client


def _is_cut(server: Served, client: socket.socket) -> bool:
    """Whether the server has ended the connection, seen from its side."""
    own = client.getsockname()
    return all(connection.client != tuple(own) for connection in list(server.server.server_state.connections))


def memory_mib() -> float:
    """Resident memory of this process, after what can be given back was given back."""
    import ctypes

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
