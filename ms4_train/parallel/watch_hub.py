"""The watch's centre, in rank 0: every other rank is connected to it, and it alone finds who died or hangs.

Exercise it: ``pytest tests/ms4_train/parallel/test_watch_hub.py``.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from ms4_train.errors import RankLostError
from ms4_train.parallel.watch_table import Verdict, exit_code_of
from ms4_train.parallel.watch_thread import TICK_SECONDS, Watcher, shortened
from ms4_train.parallel.watch_wire import Channel

GOODBYE_SECONDS = 10.0
"""For the others to say goodbye, when every rank raises the same error."""
MAX_STRANGERS = 64


class Hub(Watcher):
    """Rank 0.

    Args:
        listener: a bound socket.
        token: what a connection must say first; others are closed.
        names: of all ranks.
        timeout: seconds.
    """

    def __init__(self, listener: socket.socket, token: str, names: list[str], timeout: float) -> None:
        super().__init__(0, names, timeout)
        self._token = token
        self._listener = listener
        self._channels: dict[int, Channel] = {}
        self._strangers: set[Channel] = set()
        self.joined = threading.Event()
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)

    def tell(self, message: dict[str, Any], *, must_arrive: bool = False) -> None:
        """Send to every other rank."""
        for channel in tuple(self._channels.values()):
            channel.send(message, must_arrive=must_arrive)

    def conclude(self, verdict: Verdict) -> None:
        """Set the verdict and tell everybody."""
        if self.verdict is None:
            self.tell({"verdict": asdict(verdict)}, must_arrive=True)
        super().conclude(verdict)

    def leave(self, kind: str, message: str, exit_code: int = RankLostError.exit_code) -> None:
        """See ``Watcher.leave``. Without an error, rank 0 stays until the others have left: it is who would tell them of a death.

        Raises:
            RankLostError: another rank was lost meanwhile.
        """
        if kind == "error":
            if self.verdict is None:
                self.tell({"verdict": asdict(self.table.failed(0, shortened(message), exit_code))}, must_arrive=True)
        else:
            self._wait_for_others(GOODBYE_SECONDS if kind == "agreed" else None)
            self.tell({"bye": kind}, must_arrive=True)
        if self.verdict is None or kind == "done":
            self.stop()

    def close_sockets(self) -> None:
        """Close everything."""
        for channel in (*self._channels.values(), *self._strangers):
            channel.close()
        self._listener.close()
        super().close_sockets()

    def _wait_for_others(self, seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.table.are_alone and (deadline is None or time.monotonic() < deadline):
            if self.concluded.wait(TICK_SECONDS / 5):
                assert self.verdict is not None
                raise self.verdict.error()

    def _tick(self, now: float) -> None:
        for channel in self._channels.values():
            channel.flush()
        if self.verdict is None and self.joined.is_set():
            verdict = self.table.judge(now)
            if verdict is not None:
                self.conclude(verdict)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._strangers) >= MAX_STRANGERS:
            connection.close()
            return
        channel = Channel(connection)
        self._strangers.add(channel)
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._greet(channel))

    def _greet(self, channel: Channel) -> None:
        """The first message of a connection: the token and a rank that nobody has."""
        messages = channel.receive()
        if messages == []:
            return
        self._strangers.discard(channel)
        self.selector.unregister(channel.socket)
        hello = messages[0] if messages else {}
        rank = self._introduced(hello)
        if rank is None:
            channel.close()
            return
        self._channels[rank] = channel
        self.table.heard(rank, self.clock.now)
        channel.send({"welcome": True}, must_arrive=True)
        self.selector.register(channel.socket, selectors.EVENT_READ, lambda: self._hear(rank, channel))
        if len(self._channels) == len(self.table.ranks) - 1:
            self._close_door()

    def _introduced(self, hello: dict[str, Any]) -> int | None:
        rank, token = hello.get("rank"), hello.get("token")
        if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank < len(self.table.ranks) or rank in self._channels:
            return None
        return rank

    def _close_door(self) -> None:
        self.selector.unregister(self._listener)
        self._listener.close()
        for stranger in self._strangers:
            self.selector.unregister(stranger.socket)
            stranger.close()
        self._strangers.clear()
        self.joined.set()

    def _hear(self, rank: int, channel: Channel) -> None:
        messages = channel.receive()
        if messages is None:
            self.selector.unregister(channel.socket)
            verdict = self.table.ended(rank)
            if verdict is not None:
                self.conclude(verdict)
            return
        for message in messages:
            self.take(rank, message)
            bye = message.get("bye")
            if bye == "error":
                text = shortened(str(message.get("message", "")))
                self.table.left(rank, self.clock.now)
                self.conclude(self.table.failed(rank, text, exit_code_of(message)))
            elif bye is not None:
                self.table.left(rank, self.clock.now)
