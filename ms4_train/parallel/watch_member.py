"""The watch's end in every rank but the first: tells rank 0 where this one is, and hears of the others from it.

Exercise it: ``pytest tests/ms4_train/parallel/test_watch_member.py``.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any

from ms4_train.errors import RankLostError
from ms4_train.parallel.watch_table import Verdict, exit_code_of
from ms4_train.parallel.watch_thread import Watcher, shortened
from ms4_train.parallel.watch_wire import Channel


class Member(Watcher):
    """A rank that is not the first.

    Args:
        connection: to rank 0.
        token: what proves that this is a rank of the run.
        rank: of this process.
        names: of all ranks.
        timeout: seconds.
    """

    def __init__(self, connection: socket.socket, token: str, rank: int, names: list[str], timeout: float) -> None:
        super().__init__(rank, names, timeout)
        self.joined = threading.Event()
        self._channel = Channel(connection)
        self._channel.send({"token": token, "rank": rank}, must_arrive=True)
        self.selector.register(connection, selectors.EVENT_READ, self._hear)

    def tell(self, message: dict[str, Any], *, must_arrive: bool = False) -> None:
        """Send to rank 0."""
        self._channel.send(message, must_arrive=must_arrive)

    def leave(self, kind: str, message: str, exit_code: int = RankLostError.exit_code) -> None:
        """See ``Watcher.leave``."""
        self.tell({"bye": kind, "message": shortened(message), "exit_code": exit_code}, must_arrive=True)
        deadline = time.monotonic() + 1
        while self._channel.has_pending and time.monotonic() < deadline:
            time.sleep(0.01)
            self._channel.flush()
        if self.verdict is None or kind == "done":
            self.stop()

    def close_sockets(self) -> None:
        """Close everything."""
        self._channel.close()
        super().close_sockets()

    def _tick(self, now: float) -> None:
        self._channel.flush()
        if self.verdict is None:
            verdict = self.table.silent(0, now)
            if verdict is not None:
                self.conclude(verdict)

    def _hear(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            self.selector.unregister(self._channel.socket)
            verdict = self.table.ended(0)
            if verdict is not None and not self.is_over.is_set():
                self.conclude(verdict)
            return
        for message in messages:
            self.take(0, message)
            if "welcome" in message:
                self.joined.set()
            elif "bye" in message:
                self.table.left(0, self.clock.now)
            elif isinstance(message.get("verdict"), dict):
                self.conclude(_verdict_of(message["verdict"]))


def _verdict_of(fields: dict[str, Any]) -> Verdict:
    fix = fields.get("fix")
    return Verdict(
        str(fields.get("message")), fix if isinstance(fix, str) else None, fields.get("is_own_error") is True, exit_code_of(fields)
    )
