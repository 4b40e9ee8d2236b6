"""A real HTTP server that speaks OpenAI's protocol, answers by a rule, and fails as often and in whatever way it is told.

In this process, on a thread of its own::

    with FlakyServer(rule=Rule(table), faults=0.3) as server:
        ... server.base_url ... server.stats()

In another one::

    with flaky_process("--faults", "0.3", "--table", "table.json") as base_url: ...

or from a shell, in the folder ``tests``: ``python -m support.flaky_server --port 0 --faults 0.3``; its first line of output says where.
Which attempt of which request fails, and how, is decided by ``seed`` and the request, not by the order in which requests come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from support.flaky_answers import STYLES, Rule, request_key
from support.flaky_faults import FAULTS, PAGE, SILENT_FAULTS, STATUS_FAULTS, choose_fault, status_reply, stream_events, whole_body

TESTS = Path(__file__).resolve().parents[1]
MODEL = "scripted-model"
_REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


class FlakyServer:
    """The server on a thread. Attributes may be changed while it runs.

    Args:
        rule: what is answered.
        faults: share of the attempts that fail.
        kinds: of faults; default: all.
        style: where thinking comes back.
        seed: of the faults.
        key: bearer token that is asked for.
        model: name; a request for another one gets 404.
        seconds: between request and first token.
        token_seconds: between tokens.
        capacity: requests at once; more are pushed back with 429. None: any number.
        status: every chat request gets this status.
        max_faults: attempts of one request that fail at most.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        *,
        rule: Rule | None = None,
        faults: float = 0.0,
        kinds: Sequence[str] = tuple(FAULTS),
        style: str = "vllm",
        seed: int = 0,
        key: str | None = None,
        model: str = MODEL,
        seconds: float = 0.0,
        token_seconds: float = 0.0,
        capacity: int | None = None,
        status: int | None = None,
        max_faults: int = 1 << 30,
        port: int = 0,
    ) -> None:
        self.rule = rule or Rule()
        self.faults, self.kinds, self.style, self.seed = faults, tuple(kinds), style, seed
        self.key, self.model = key, model
        self.seconds, self.token_seconds = seconds, token_seconds
        self.capacity, self.status, self.max_faults = capacity, status, max_faults
        self.port = port
        self.attempts: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.arrivals: list[tuple[float, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keeps_bodies = False
        self.in_flight = self.most_in_flight = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        """Attempts, faults by name, answers given in full, requests that were answered more than once, most at once, and now."""
        return {
            "attempts": self.attempts.total(),
            "requests": len(self.attempts),
            "faults": dict(self.injected),
            "answers": self.answered.total(),
            "repeated_answers": sum(count > 1 for count in self.answered.values()),
            "most_in_flight": self.most_in_flight,
            "in_flight": self.in_flight,
        }

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), name="flaky-server", daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection; later connections are refused."""
        if self._thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(10)
            self._thread = None

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=1024, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False when the connection is over."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/stats":
            return _reply(writer, 200, json.dumps(self.stats()).encode())
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            # As some real ones do, it says which key it did not like.
            return _error(writer, 401, f"Incorrect API key provided: {headers.get('authorization', '')}")
        if (method, path) == ("GET", "/v1/models"):
            row = {"id": self.model, "object": "model", "owned_by": "vllm"}
            return _reply(writer, 200, json.dumps({"object": "list", "data": [row]}).encode())
        if (method, path) != ("POST", "/v1/chat/completions"):
            return _reply(writer, 404, b'{"detail":"Not Found"}')
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._chat(json.loads(data), reader, writer)
        finally:
            self.in_flight -= 1

    async def _chat(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        key = request_key(body)
        attempt, self.attempts[key] = self.attempts[key], self.attempts[key] + 1
        self.arrivals.append((time.monotonic(), key))
        if self.keeps_bodies:
            self.bodies.append(body)
        if self.status is not None:
            return _error(writer, self.status, f"scripted {self.status}")
        if body.get("model") != self.model:
            return _error(writer, 404, f"The model `{body.get('model')}` does not exist.")
        if self.capacity is not None and self.in_flight > self.capacity:
            return _error(writer, 429, "too many at once")
        fault = choose_fault(self.seed, key, attempt, self.faults, self.kinds) if attempt < self.max_faults else None
        if fault is not None:
            self.injected[fault] += 1
        if fault in STATUS_FAULTS:
            status, extra, content = status_reply(fault)
            return _reply(writer, status, content, extra)
        if fault in SILENT_FAULTS and fault != "hang-within":
            return await _be_silent(fault, reader, writer)
        if fault == "html":
            return _reply(writer, 200, PAGE, {"Content-Type": "text/html"})
        if self.seconds:
            await asyncio.sleep(self.seconds)
        answer = self.rule.answer(body)
        if body.get("stream"):
            is_open = await self._stream(stream_events(answer, body, self.style, fault), fault, reader, writer)
        else:
            is_open = await self._whole(whole_body(answer, body, self.style, fault), fault, reader, writer)
        if fault in {None, "drip"}:
            self.answered[key] += 1
        return is_open

    async def _stream(self, events: list[bytes], fault: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
        if fault == "drip":
            text = b"".join(events)
            events = [text[start : start + 97] for start in range(0, len(text), 97)]
        if fault == "hang-within":
            events = events[: len(events) // 2]
        pause = 0.002 if fault == "drip" else self.token_seconds
        pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        if pause:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        else:
            writer.write(b"".join(pieces))
        if fault == "cut":
            await writer.drain()
            return False
        if fault == "hang-within":
            return await _be_silent(fault, reader, writer)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _whole(self, data: bytes, fault: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if fault in {"cut", "hang-within"}:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (2 * len(data)) + data)
            await writer.drain()
            return await _be_silent(fault, reader, writer) if fault == "hang-within" else False
        return _reply(writer, 200, data)


def _reply(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(head.encode("latin-1") + b"\r\n" + body)
    return True


def _error(writer: asyncio.StreamWriter, status: int, message: str) -> bool:
    return _reply(writer, status, json.dumps({"error": {"message": message, "type": "scripted", "code": None}}).encode())


async def _be_silent(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    if fault == "reset":
        # A reset instead of an orderly end.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if fault.startswith("hang"):
        await writer.drain()
        # Until the client has had enough.
        await reader.read(1)
    return False


def server_stats(base_url: str) -> dict[str, Any]:
    """``FlakyServer.stats`` of one in another process."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=10) as reply:
        return json.load(reply)


@contextlib.contextmanager
def flaky_process(*arguments: str) -> Iterator[str]:
    """The server in a process of its own, with options as on the command line; its address."""
    command = [sys.executable, "-m", "support.flaky_server", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        process.wait(10)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--faults", type=float, default=0.0, help="share of attempts that fail")
    parser.add_argument("--kinds", default=",".join(FAULTS), help="names of faults with commas between: " + ", ".join(FAULTS))
    parser.add_argument("--style", choices=STYLES, default="vllm", help="where thinking comes back")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--rule-seed", type=int, default=0, help="of the answers")
    parser.add_argument("--table", type=Path, help="JSON object: question -> answer")
    parser.add_argument("--accuracy", type=float, default=0.5, help="share of numbers that are answered right")
    parser.add_argument("--thinking-words", type=int, default=12)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--key", help="bearer token that is asked for")
    parser.add_argument("--seconds", type=float, default=0.0, help="between request and first token")
    parser.add_argument("--token-seconds", type=float, default=0.0, help="between tokens")
    parser.add_argument("--capacity", type=int, help="requests at once")
    parser.add_argument("--status", type=int, help="every chat request gets this status")
    parser.add_argument("--max-faults", type=int, default=1 << 30, help="attempts of one request that fail at most")
    options = vars(parser.parse_args(arguments))
    table = json.loads(options.pop("table").read_text()) if options["table"] else options.pop("table") or {}
    rule = Rule(table, options.pop("accuracy"), options.pop("rule_seed"), options.pop("thinking_words"))
    with FlakyServer(rule=rule, **{**options, "kinds": options["kinds"].split(",")}) as server:
        print(json.dumps({"base_url": server.base_url, "port": server.port}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
