"""Servers as configured: addresses, keys, and what they say about themselves."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from support.flaky_server import MODEL, FlakyServer

from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.endpoint.targets import Target, make_targets, section_name
from ms4_train.config.endpoint import EndpointSection, JudgeSection
from ms4_train.errors import EvaluationError

KEY = "sk-planted-0123456789"


def section(*servers: dict, **options) -> EndpointSection:
    return EndpointSection.model_validate({"kind": "vllm", **options, "servers": list(servers)})


def target(base_url: str, **server) -> Target:
    return make_targets(section({"base_url": base_url, **server}))[0]


@pytest.mark.parametrize(
    ("base_url", "label", "url"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
        # A path that ends in letters of the route keeps them.
        ("https://api.example/competitions/chat/completions/", "api.example:443", "https://api.example/competitions/chat/completions"),
        ("http://[::1]:9/v1", "[::1]:9", "http://[::1]:9/v1/chat/completions"),
        ("http://host/x", "host:80", "http://host/x/chat/completions"),
    ],
)
def test_addresses(base_url, label, url):
    made = target(base_url)
    assert (made.label, made.url) == (label, url)


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        (f"http://me:{KEY}@host/v1", "user name"),
        (f"http://host/v1?api-key={KEY}", "query"),
        ("http://host/v1#x", "fragment"),
        ("http:///v1", "without a host"),
        ("http://host:99999999/v1", "port"),
    ],
)
def test_addresses_that_are_none_are_refused_without_repeating_them(base_url, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        target(base_url)
    assert "endpoint.servers[0].base_url" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "naïve", "a\nb"])
def test_keys_that_are_none(monkeypatch, value):
    monkeypatch.delenv("THE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(EvaluationError, match="THE_KEY") as caught:
        target("http://host/v1", api_key_env="THE_KEY")
    assert not value or not value.strip() or value not in str(caught.value)


def test_a_key_is_sent_and_not_shown(monkeypatch):
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    made = target("http://host/v1", api_key_env="THE_KEY")
    assert made.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(made)
    assert made.words(f"Incorrect API key provided: {KEY}.") == "Incorrect API key provided: ***."
    assert KEY not in str(made.error(RequestFailure("refused", f"no {KEY}")))
    assert "Authorization" not in target("http://host/v1").headers


@pytest.mark.parametrize("end", ["", "."])
def test_a_key_that_a_clipped_message_ends_within_is_not_shown(monkeypatch, end):
    monkeypatch.setenv("THE_KEY", KEY)
    made = target("http://host/v1", api_key_env="THE_KEY")
    for size in range(4, len(KEY)):
        assert made.words(f"HTTP 400: bad key {KEY[:size]}{end}") == f"HTTP 400: bad key ***{end}"
    assert made.words("HTTP 400: bad key.") == "HTTP 400: bad key."


def test_messages_name_the_section():
    judge = JudgeSection.model_validate({"servers": [{"base_url": "http://host/v1"}, {"base_url": "http:///v1"}]})
    assert section_name(section({"base_url": "http://host/v1"})) == "endpoint"
    with pytest.raises(EvaluationError, match=r"judge\.servers\[1\]\.base_url"):
        make_targets(judge)


def prepare(made: Target, timeout: float = 5.0) -> Target:
    async def asked() -> None:
        async with httpx.AsyncClient(trust_env=not made.is_loopback) as client:
            await made.prepare(client, timeout)

    asyncio.run(asked())
    return made


def test_the_only_model_is_found_and_the_kind_told():
    with FlakyServer() as server:
        made = prepare(make_targets(section({"base_url": server.base_url}, kind="auto"))[0])
    assert (made.model, made.kind.name) == (MODEL, "vllm")
    assert made.is_loopback
    assert not target("http://api.example/v1").is_loopback


def test_a_given_model_stays():
    with FlakyServer() as server:
        assert prepare(target(server.base_url, model="alias")).model == "alias"


def refused(made: Target, **options) -> RequestFailure:
    with pytest.raises(RequestFailure) as caught:
        prepare(made, **options)
    return caught.value


def test_a_wrong_key_is_known_before_any_request(monkeypatch):
    monkeypatch.setenv("THE_KEY", "wrong")
    with FlakyServer(key=KEY) as server:
        for made in (target(server.base_url), target(server.base_url, api_key_env="THE_KEY")):
            assert refused(made).is_misconfigured
        assert not server.attempts


def test_a_wrong_path_needs_a_name_and_is_then_for_the_first_request_to_find():
    with FlakyServer() as server:
        wrong = server.base_url.removesuffix("/v1") + "/v2"
        assert "lists no models" in refused(target(wrong)).message
        assert "lack its /v1" not in refused(target(wrong)).message
        assert "lack its /v1" in refused(target(server.base_url.removesuffix("/v1"))).message
        assert prepare(target(wrong, model="x")).model == "x"


@pytest.mark.parametrize("names", [[], ["a", "b"], [f"name{number}" for number in range(30)]])
def test_a_choice_of_models_is_the_users(monkeypatch, names):
    async def listed(self, client, headers):
        return names

    monkeypatch.setattr(Target, "_models", listed)
    failure = refused(target("http://127.0.0.1:1/v1"))
    assert failure.is_misconfigured
    assert f"{len(names)} models" in failure.message
    assert len(failure.message) < 300


def test_nobody_there():
    with FlakyServer() as server:
        url = server.base_url
    failure = refused(target(url))
    assert (failure.error_class, failure.is_misconfigured) == ("connection", False)


class Broken(httpx.AsyncBaseTransport):
    """Its list of models fails, as that of transformers serve without a cache of the hub."""

    async def handle_async_request(self, request):
        return httpx.Response(500, stream=httpx.ByteStream(b"no cache"), request=request)


def test_a_list_of_models_that_fails_matters_only_where_the_name_is_not_given():
    async def prepare(made: Target) -> str | None:
        async with httpx.AsyncClient(transport=Broken()) as client:
            await made.prepare(client, 5.0)
        return made.model

    assert asyncio.run(prepare(target("http://host/v1", model="given"))) == "given"
    with pytest.raises(RequestFailure):
        asyncio.run(prepare(target("http://host/v1")))
