"""Connections to one server, each in a client of httpx of its own.

httpx's pool looks at every connection for every request, several times, and at each pair of them: with 64 connections that takes more time
than all the rest of a request. A pool of one connection has nothing to look at, and who has a free one is known here.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_lanes.py``.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence

import httpx

from ms4_evals.clients.endpoint.targets import Target

KEEPALIVE_SECONDS = 4.0
"""Idle connections are closed before common servers do it (after five seconds), else a request could meet a closing one."""


def make_lanes(targets: Sequence[Target]) -> list[Lanes]:
    """For each server its own; proxies of the environment stand between this machine and others, not within it."""
    # Reading all certificates takes longer than a short run against a server of this machine; without them nothing is trusted.
    is_local = all(target.is_loopback and target.base_url.startswith("http://") for target in targets)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_local else httpx.create_ssl_context()
    return [Lanes(context, trusts_environment=not target.is_loopback) for target in targets]


class Lanes:
    """Of one server.

    Args:
        context: of encrypted connections, shared: making one reads all certificates.
        trusts_environment: proxies that the environment names are used.
    """

    def __init__(self, context: ssl.SSLContext, *, trusts_environment: bool) -> None:
        self._context = context
        self._trusts_environment = trusts_environment
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    @contextlib.asynccontextmanager
    async def lane(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that nobody else uses meanwhile: the one used last, whose connection is the warmest."""
        client = self._idle.pop() if self._idle else self._new()
        try:
            yield client
        finally:
            self._idle.append(client)

    async def close(self) -> None:
        """Close all connections."""
        clients, self._all, self._idle = self._all, [], []
        for client in clients:
            await client.aclose()

    def _new(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_SECONDS)
        client = httpx.AsyncClient(verify=self._context, limits=limits, trust_env=self._trusts_environment)
        self._all.append(client)
        return client
