"""One request to one server over HTTP, and the reply, whole.

httpx is used directly, not through a client library for OpenAI's protocol: whether a stream was cut, doubled or garbled shows only in its
bytes, and such a library hands on parsed chunks, ends quietly where the connection ended, and repeats requests by rules of its own.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_exchange.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import httpx

from ms4_evals.clients.endpoint.events import Event, EventReader
from ms4_evals.clients.endpoint.failures import RequestFailure, bad_response, from_exception, from_status
from ms4_evals.clients.endpoint.replies import Reply, StreamedReply, read_whole
from ms4_evals.clients.servers.kinds import ServerKind

CONNECT_SECONDS = 10.0
ERROR_BYTES = 64 << 10
ERROR_SECONDS = 5.0
AFTER_DONE_SECONDS = 1.0
LONGEST_DRIP = 20
"""A stream may last this many times the seconds that it may be silent; a server that sends a byte now and then does not hold a run up."""

BASE_BYTES = 16 << 20
BYTES_PER_TOKEN = 4 << 10
"""A reply may have this many bytes, so many more per token asked for; a chunk with one token takes some hundred."""

_BROKEN = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, TimeoutError)


@dataclass(frozen=True)
class Exchanged:
    """A reply and the seconds from sending to the first text (None where that was not seen) and to the end."""

    reply: Reply
    first_token_seconds: float | None
    seconds: float


@dataclass(frozen=True)
class Call:
    """What is sent, and what may come back.

    Attributes:
        url: of the route.
        headers: with the key.
        body: JSON.
        is_stream: the reply is asked for as a stream.
        timeout: seconds without a byte, or, for a whole reply, until it is there.
        max_tokens: asked for; bounds the size of the reply.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    is_stream: bool
    timeout: float
    max_tokens: int


async def exchange(client: httpx.AsyncClient, call: Call, kind: ServerKind, on_chunk: Callable[[], None]) -> Exchanged:
    """Send one request and read its reply.

    Args:
        client: with its connections.
        call: what to send.
        kind: of the server.
        on_chunk: called for every chunk of text.

    Raises:
        RequestFailure: there is no complete answer.
    """
    received = _Received(call, on_chunk)
    total = call.timeout * LONGEST_DRIP if call.is_stream else call.timeout
    try:
        async with asyncio.timeout(total), _sent(client, call) as response:
            await _require_ok(response)
            reply = await received.read(response, kind)
    except _BROKEN as error:
        raise from_exception(error, has_begun=received.size > 0) from error
    return Exchanged(reply, received.first_token_seconds, received.seconds)


@contextlib.asynccontextmanager
async def _sent(client: httpx.AsyncClient, call: Call) -> AsyncIterator[httpx.Response]:
    timeout = httpx.Timeout(call.timeout, connect=min(CONNECT_SECONDS, call.timeout), pool=None)
    async with client.stream("POST", call.url, content=call.body, headers=dict(call.headers), timeout=timeout) as response:
        yield response


async def _require_ok(response: httpx.Response) -> None:
    if response.status_code == 200:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            # None was accepted; a few bytes could grow to any size.
            raise bad_response(f"a reply in the encoding {encoding:.40}")
        return
    body = b""
    # The status is known; what the server has to say about it is welcome, but not waited for.
    with contextlib.suppress(*_BROKEN):
        async with asyncio.timeout(ERROR_SECONDS):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= ERROR_BYTES:
                    break
    raise from_status(response.status_code, response.headers, body[:ERROR_BYTES])


class _Received:
    """What has come of one reply."""

    def __init__(self, call: Call, on_chunk: Callable[[], None]) -> None:
        self._is_stream = call.is_stream
        self._max_bytes = BASE_BYTES + call.max_tokens * BYTES_PER_TOKEN
        self._on_chunk = on_chunk
        self._start = time.perf_counter()
        self.size = 0
        self.seconds = 0.0
        self.first_token_seconds: float | None = None

    async def read(self, response: httpx.Response, kind: ServerKind) -> Reply:
        """Read to the end, or to where a stream says that it is done."""
        # A server that knows no streams answers with the whole all the same.
        if self._is_stream and "json" not in response.headers.get("content-type", ""):
            return await self._read_stream(response, kind)
        body = bytearray()
        async for piece in response.aiter_raw():
            self._count(piece)
            body += piece
        self.seconds = time.perf_counter() - self._start
        return read_whole(bytes(body), kind)

    async def _read_stream(self, response: httpx.Response, kind: ServerKind) -> Reply:
        events, streamed = EventReader(), StreamedReply(kind)
        pieces = response.aiter_raw()
        async for piece in pieces:
            self._count(piece)
            for event in events.feed(piece):
                self._feed(streamed, event)
            if streamed.is_done:
                break
        else:
            for event in events.end():
                self._feed(streamed, event)
        self.seconds = time.perf_counter() - self._start
        reply = streamed.finish()
        await self._drain(pieces)
        return reply

    async def _drain(self, pieces: AsyncIterator[bytes]) -> None:
        """To the end of the body, so that the connection can be used again; the answer is there, whatever happens."""
        with contextlib.suppress(*_BROKEN, RequestFailure):
            async with asyncio.timeout(AFTER_DONE_SECONDS):
                async for piece in pieces:
                    self._count(piece)

    def _feed(self, streamed: StreamedReply, event: Event) -> None:
        before = streamed.text_chunks
        streamed.feed(event)
        if streamed.text_chunks > before:
            if self.first_token_seconds is None:
                self.first_token_seconds = time.perf_counter() - self._start
            self._on_chunk()

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise bad_response(f"a reply of more than {self._max_bytes:,} bytes")
