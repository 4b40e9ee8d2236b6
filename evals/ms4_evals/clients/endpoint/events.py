"""Server-sent events out of bytes: lines end with LF, CRLF or CR, wherever the network cut them.

Bytes are handed on as they are; whether they are UTF-8 and JSON is for whoever reads them. That is why this is not a library's reader:
those decode leniently, and a replacement character inside an answer would then be graded as if the model had written it.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_events.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ms4_evals.clients.endpoint.failures import bad_response

MAX_EVENT_BYTES = 8 << 20

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """``data`` of one event, and its name (empty: a message)."""

    data: bytes
    name: str = ""


class EventReader:
    """Cuts a stream into events."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""
        self._is_first = True

    def feed(self, piece: bytes) -> list[Event]:
        """The events that ``piece`` completes.

        Raises:
            RequestFailure: an event is too large.
        """
        text = self._rest + piece
        if self._is_first:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._rest = text
                return []
            text, self._is_first = text.removeprefix(b"\xef\xbb\xbf"), False
        # A CR at the end may be the first half of a CRLF.
        held = b"\r" if text.endswith(b"\r") else b""
        body = text[: len(text) - len(held)]
        lines = _LINE_END.split(body) if b"\r" in body else body.split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) + self._size > self._max_event_bytes:
            raise bad_response(f"an event of more than {self._max_event_bytes:,} bytes")
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[Event]:
        """The event that the end of the stream completes: some servers leave the last line end out."""
        rest, self._rest = self._rest, b""
        events = [self._take(rest.removesuffix(b"\r")), self._take(b"")]
        return [event for event in events if event is not None]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            data, name = self._data, self._name
            self._data, self._size, self._name = [], 0, ""
            return Event(b"\n".join(data), name) if data else None
        if line.startswith(b":"):
            return None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > self._max_event_bytes:
                raise bad_response(f"an event of more than {self._max_event_bytes:,} bytes")
        elif field == b"event":
            self._name = value[:40].decode("ascii", "replace")
        return None
