"""One TCP connection of the watch over the ranks: short lines of JSON that are sent without ever waiting.

Exercise it: ``pytest tests/ms4_train/parallel/test_watch_wire.py``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

MAX_LINE_BYTES = 8192
MAX_PENDING_BYTES = 1 << 16
"""What waits for a peer that does not read; beyond it news is dropped, for newer news follows."""

# A machine that is gone answers no probe: after 2 s of silence one a second, and the end after five. A stopped process does answer, through
# its kernel, so that it counts as hung and not as dead.
_PROBES = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 7000}


class Channel:
    """Sends and receives messages over a connected socket. ``send`` may be called from any thread, the rest from one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._received = bytearray()
        self._is_open = True
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            option = getattr(socket, name, None)  # macOS lacks some
            if option is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    @property
    def has_pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._pending)

    def send(self, message: dict[str, Any], *, must_arrive: bool = False) -> None:
        """Send now what the kernel takes and keep the rest for ``flush``; a closed connection swallows it.

        Args:
            message: what JSON can hold; its line has at most ``MAX_LINE_BYTES``.
            must_arrive: False for news that may be dropped when the peer does not read.
        """
        line = json.dumps(message).encode() + b"\n"
        assert len(line) <= MAX_LINE_BYTES, "a line of the watch is too long"
        with self._lock:
            if self._is_open and (must_arrive or len(self._pending) < MAX_PENDING_BYTES):
                self._pending += line
                self._write()

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        with self._lock:
            if self._is_open:
                self._write()

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None at the end of the connection, also where the peer sends what is no message."""
        ended = not self._read()
        messages = []
        while (end := self._received.find(b"\n")) >= 0:
            message = _parsed(bytes(self._received[:end]))
            if message is None:
                return None
            messages.append(message)
            del self._received[: end + 1]
        if len(self._received) > MAX_LINE_BYTES or (ended and not messages):
            return None
        return messages

    def close(self) -> None:
        """End the connection; what the kernel has taken still arrives."""
        with self._lock:
            self._is_open = False
            with contextlib.suppress(OSError):
                self.socket.close()

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: self.socket.send(self._pending)]
        except BlockingIOError:
            pass
        except OSError:  # the reader finds out
            self._pending.clear()

    def _read(self) -> bool:
        try:
            while len(self._received) <= MAX_PENDING_BYTES:
                data = self.socket.recv(MAX_PENDING_BYTES)
                if not data:
                    return False
                self._received += data
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _parsed(line: bytes) -> dict[str, Any] | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
