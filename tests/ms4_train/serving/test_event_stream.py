"""Server-sent events as bytes, read back by the decoder of OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from openai._streaming import SSEDecoder

from ms4_train.serving.event_stream import DONE, KEEP_ALIVE, EventStream, encoded


def play(pieces: AsyncGenerator[bytes], receive: Any, on_gone: Any = lambda: None) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def scene() -> None:
        await EventStream(pieces, on_gone, {"X-Request-Id": "r"})({"type": "http"}, receive, send)

    asyncio.run(scene())
    return sent


async def never() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


async def three() -> AsyncGenerator[bytes]:
    yield encoded({"text": "é\n\n😀"})
    yield KEEP_ALIVE
    yield encoded({"text": "data: [DONE]"}) + DONE


def test_the_clients_decoder_reads_it() -> None:
    start, *bodies = play(three(), never)
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert [body["more_body"] for body in bodies] == [True, True, True, False]
    events = list(SSEDecoder().iter_bytes(iter([b"".join(body["body"] for body in bodies)])))
    assert [json.loads(event.data) for event in events[:2]] == [{"text": "é\n\n😀"}, {"text": "data: [DONE]"}]
    assert events[2].data == "[DONE]"
    assert len(events) == 3  # a sign of life is no event


def test_a_client_that_goes_ends_the_iterator() -> None:
    gone = asyncio.Event()
    closed: list[bool] = []

    async def pieces() -> AsyncGenerator[bytes]:
        try:
            yield encoded({})
            await gone.wait()
        finally:
            closed.append(True)

    async def leave() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    play(pieces(), leave, gone.set)
    assert closed == [True]
