"""Server-sent events: an answer chunk by chunk, with signs of life while there is nothing to say.

Nothing is written faster than the client reads: the server's protocol holds a write back while its buffer is full, and cuts off a client
that takes nothing (``ms4_train.serving.http_server``). Exercise it: ``pytest tests/ms4_train/serving/test_event_stream.py``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ms4_train.serving.presence import watching

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Writes what an iterator gives; ``on_gone`` is called as soon as the client has closed the connection.

    Args:
        pieces: encoded events.
        on_gone: must make the iterator end.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes], on_gone: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | headers)
        # Starlette counts the bytes of an empty body.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._pieces = pieces
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        try:
            async with watching(receive, self._on_gone), contextlib.aclosing(self._pieces) as pieces:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_gone()  # where the iterator never began


def encoded(value: dict[str, Any]) -> bytes:
    """One event, in ASCII: clients that split text into lines would also split it at U+0085 and U+2028."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
