"""Serves an application over HTTP with bounds on connections and their patience, and ends gracefully on SIGTERM and SIGINT.

A connection is closed when its request's head does not come in time, and when its client takes nothing of what is written for too long;
whatever worked for it notices and stops. On the first signal new requests are refused and those at work may end; on the second, or when
the time for that is over, they are given up. Exercise it: ``pytest tests/ms4_train/serving/test_http_server.py``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ms4_train.errors import ConfigError
from ms4_train.serving.service import Service
from ms4_train.serving.settings import ServerSettings

LOG = logging.getLogger("ms4_train.serving")
_HEAD_BYTES = 64 << 10
_LAST_SECONDS = 2
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen there ({error.strerror}).", key=f"{host}:{port}", fix="choose another --host or --port."
        ) from None
    return listener


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for an application of ``create_app``; ``server.run(sockets=[...])`` serves until it is told to stop."""
    service: Service = app.state.service
    settings = service.settings

    class Connection(PatientProtocol):
        bounds = settings

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    return DrainingServer(config, service)


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve until a signal ends it; returns when no answer is at work any more."""
    make_server(app).run(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """Lets answers at work end before it does."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drained_by: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first begins the end, the second hastens it."""
        now = time.monotonic()
        if self._drained_by is None:
            seconds, answers = self._service.settings.drain_seconds, self._service.admission.answers
            LOG.warning("stopping: %d answers may end within %g s; a second signal ends them now", answers, seconds)
            self._drained_by = now + seconds
            self._service.begin_stop()
        else:
            self._drained_by = now

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        if self._drained_by is not None:
            if self._service.admission.answers == 0:
                return True
            if time.monotonic() >= self._drained_by:
                LOG.warning("%d answers are given up, for the server stops", self._service.admission.answers)
                self._service.give_up()
                return True
        if self._service.thread.error is not None:
            LOG.error("the engine has died; the server stops")
            return True
        return await super().on_tick(counter)


class PatientProtocol(H11Protocol):
    """uvicorn's connection with bounds: how many there are, how long a head may take to come and a write to be read."""

    bounds: ServerSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.max_connections:
            transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()  # a later request, drop by drop

    def on_response_complete(self) -> None:
        """The response is written, though perhaps not read."""
        super().on_response_complete()
        self._forget_head()
        if self.transport.is_closing():
            self._watch_reading()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._forget_write()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come after a response for a while."""
        super().timeout_keep_alive_handler()
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, from whichever side."""
        self._forget_head()
        self._forget_write()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.bounds.header_seconds, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_reading(self) -> None:
        """See that the client takes what is written: a transport that is to close waits for that without end."""
        self._unread = self.transport.get_write_buffer_size()
        if self._unread and self._write_timer is None:
            self._write_timer = self.loop.call_later(self.bounds.stall_seconds, self._check_progress)

    def _forget_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_progress(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < self._unread:
            self._watch_reading()
        else:
            LOG.warning("a client has read nothing for %g s and is cut off", self.bounds.stall_seconds)
            self.transport.abort()
