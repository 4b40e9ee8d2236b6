"""One server of the configuration as it is reached: address, key, name of the model there, kind of server.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_targets.py``.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field

import httpx

from ms4_evals.clients.endpoint.failures import RequestFailure, bad_response, from_exception, from_status
from ms4_evals.clients.endpoint.habits import Habits
from ms4_evals.clients.servers.kinds import KINDS, ServerKind, detect_kind
from ms4_evals.outside_text import one_line
from ms4_train.config.endpoint import EndpointSection, JudgeSection, Server
from ms4_train.errors import EvaluationError, UntrustedInputError
from ms4_train.untrusted import parse_json

PREPARE_SECONDS = 5.0
MODELS_BYTES = 4 << 20
MODELS_SHOWN = 10

_ROUTE = "/chat/completions"
_KEY = re.compile(r"[\x21-\x7e]+")
_TOLD = 4
"""Characters of a key's beginning that may be seen: they tell which kind of key it is."""


@dataclass
class Target:
    """A server, and what has been learned about it.

    Attributes:
        label: host and port, for people and for the store; neither path nor key.
        place: in the configuration.
        base_url: with its version, without a slash at the end.
        key: sent as a bearer token; never shown.
        model: name of the model there; None until the server was asked.
        kind: None until the server was asked.
        has_answered: key, address and model were right at least once.
        refusals: requests in a row that it said it would never answer.
    """

    label: str
    base_url: str
    place: str = "endpoint.servers[0]"
    key: str = field(default="", repr=False)
    model: str | None = None
    kind: ServerKind | None = None
    habits: Habits = field(default_factory=Habits)
    has_answered: bool = False
    refusals: int = 0
    was_reached: bool = False

    @property
    def url(self) -> str:
        """Of the route that answers."""
        return self.base_url + _ROUTE

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        # No encoding: a compressed reply of a few bytes could grow to any size, and streams are not compressed anyway.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    @property
    def is_loopback(self) -> bool:
        """On this machine: no proxy of the environment stands between."""
        host = httpx.URL(self.base_url).host
        return host in {"localhost", "::1"} or host.startswith("127.")

    async def prepare(self, client: httpx.AsyncClient, timeout: float) -> None:
        """Ask the server, unless it was reached before, whether the key is right, which model it has and which kind it is.

        Raises:
            RequestFailure: it does not answer; ``is_misconfigured`` where it never will as things stand.
        """
        if self.was_reached:
            return
        headers = self.headers
        try:
            async with asyncio.timeout(min(PREPARE_SECONDS, timeout)):
                names = await self._models(client, headers)
            if self.kind is None:
                async with asyncio.timeout(min(PREPARE_SECONDS, timeout)):
                    self.kind = await detect_kind(client, self.base_url, headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise from_exception(error) from error
        if self.model is None:
            self.model = self._only(names)
        self.was_reached = True

    async def _models(self, client: httpx.AsyncClient, headers: dict[str, str]) -> list[str] | None:
        """Names that the server lists; None where it has no such route."""
        body = b""
        async with client.stream("GET", self.base_url + "/models", headers=headers) as response:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MODELS_BYTES:
                    raise bad_response(f"a list of models of more than {MODELS_BYTES:,} bytes")
        # With a name nothing depends on the list, and transformers serve answers 500 where it has no cache of the hub to look into.
        if response.status_code in {404, 405, 501} or (response.status_code >= 500 and self.model is not None):
            return None
        if response.status_code != 200:
            raise from_status(response.status_code, response.headers, body)
        try:
            listed = parse_json(body)
        except UntrustedInputError as error:
            raise bad_response(f"a list of models that is not JSON: {error.message}") from None
        rows = listed.get("data") if isinstance(listed, dict) else listed
        if not isinstance(rows, list):
            return None
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def _only(self, names: list[str] | None) -> str:
        if names is not None and len(names) == 1:
            return names[0]
        if names is None:
            message = "the server lists no models" + ("" if "/v" in self.base_url else " there (does base_url lack its /v1?)")
        else:
            shown = ", ".join(one_line(name)[:80] for name in names[:MODELS_SHOWN])
            message = f"the server lists {len(names)} models" + (f": {shown}{' ...' if len(names) > MODELS_SHOWN else ''}" if names else "")
        raise RequestFailure("refused", f"{message}; name one with `model:`", asks_again=False, is_misconfigured=True)

    def words(self, text: str) -> str:
        """A message about this server without its key, which some servers repeat; nor its beginning, where the message was clipped."""
        if not self.key:
            return text
        text = text.replace(self.key, "***")
        whole = text.removesuffix(".")
        cut = next((size for size in range(len(self.key) - 1, _TOLD - 1, -1) if whole.endswith(self.key[:size])), 0)
        return whole[: len(whole) - cut] + "***" + text[len(whole) :] if cut else text

    def error(self, failure: RequestFailure) -> EvaluationError:
        """The run cannot go on because of this server."""
        fix = "check base_url, model and api_key_env of this server." if failure.is_misconfigured else "start it, or take it out."
        return EvaluationError(self.words(f"{self.label}: {failure.message}."), key=self.place, fix=fix)


def make_targets(section: EndpointSection) -> list[Target]:
    """The servers of a section, not asked yet.

    Raises:
        EvaluationError: an address or a key cannot be used.
    """
    kind = None if section.kind == "auto" else KINDS[section.kind]
    name = section_name(section)
    return [_target(server, f"{name}.servers[{number}]", kind) for number, server in enumerate(section.servers)]


def section_name(section: EndpointSection) -> str:
    """As configuration files have it, for messages."""
    return "judge" if isinstance(section, JudgeSection) else "endpoint"


def _target(server: Server, place: str, kind: ServerKind | None) -> Target:
    base_url = server.base_url.rstrip("/").removesuffix(_ROUTE).rstrip("/")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise EvaluationError(f"{error}.", key=f"{place}.base_url", fix="write it as http://127.0.0.1:8000/v1.") from None
    if not url.host or url.userinfo or url.query or url.fragment:
        message = "an address with a user name, a query or a fragment." if url.host else "an address without a host."
        fix = "write it as http://127.0.0.1:8000/v1; a key goes into api_key_env."
        raise EvaluationError(message, key=f"{place}.base_url", fix=fix)
    host = f"[{url.host}]" if ":" in url.host else url.host
    if url.port is not None and not 0 < url.port < 65536:
        raise EvaluationError("a port that is none.", key=f"{place}.base_url", fix="use one from 1 to 65535.")
    port = url.port or (443 if url.scheme == "https" else 80)
    return Target(f"{host}:{port}", base_url, place, _key(server.api_key_env, place), server.model, kind)


def _key(variable: str | None, place: str) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EvaluationError(f"the variable {variable} is not set.", key=f"{place}.api_key_env", fix=f"export {variable}=...")
    if not _KEY.fullmatch(key):
        message = f"the variable {variable} holds more than printable ASCII."
        raise EvaluationError(message, key=f"{place}.api_key_env", fix="copy the key again.")
    return key
