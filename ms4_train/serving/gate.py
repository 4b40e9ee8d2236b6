"""What every request passes first, before a byte of its body is read: the host's name and the API key.

Exercise it: ``pytest tests/ms4_train/serving/test_gate.py``.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ms4_train.serving.failures import ApiError
from ms4_train.serving.keys import KeyRing
from ms4_train.serving.settings import ServerSettings


class Gate:
    """ASGI middleware.

    Args:
        app: behind it.
        settings: keys and hosts.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._keys = KeyRing(settings.api_keys)
        self._open_paths = {"/health"} if settings.metrics_need_key else {"/health", "/metrics"}
        self._hosts = {host.lower() for host in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._hosts and host_name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            raise ApiError(403, "The server is not reached by this name.", code="host_not_allowed")
        if scope["path"] not in self._open_paths:
            self._keys.check(headers.get(b"authorization"))


def host_name(header: str) -> str:
    """The name of a ``Host`` header, without port and brackets, in small letters."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]
