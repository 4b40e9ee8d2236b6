"""Connections are kept, used one at a time, and closed. The server is real."""

from __future__ import annotations

import asyncio
import ssl
import time

import httpx
from support.flaky_server import FlakyServer

from ms4_evals.clients.endpoint.lanes import Lanes, make_lanes
from ms4_evals.clients.endpoint.targets import Target


def test_lanes_are_reused_last_first_and_grow_with_need():
    async def check():
        lanes = Lanes(ssl.create_default_context(), trusts_environment=False)
        async with lanes.lane() as first, lanes.lane() as second:
            assert first is not second
        async with lanes.lane() as again:
            assert again is first
        await lanes.close()
        assert first.is_closed
        assert second.is_closed

    asyncio.run(check())


def test_a_lane_survives_a_failure_and_keeps_its_connection():
    async def check(url: str):
        lanes = Lanes(ssl.create_default_context(), trusts_environment=False)
        ports = set()
        for number in range(4):
            try:
                async with lanes.lane() as client:
                    response = await client.get(url + "/models")
                    ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])
                    assert number != 2
            except AssertionError:
                pass
        await lanes.close()
        assert len(ports) == 1

    with FlakyServer() as server:
        asyncio.run(check(server.base_url))


def test_control_one_pool_of_many_connections_costs_more_per_request():
    """Why there are lanes. 32 at once, whole replies; CPU time of this process, its server included in both."""

    async def ask(urls: list[str], clients: list[httpx.AsyncClient]) -> float:
        async def one(client: httpx.AsyncClient) -> None:
            for _ in range(4):
                await client.get(urls[0] + "/models")

        start = time.process_time()
        await asyncio.gather(*(one(clients[number % len(clients)]) for number in range(32)))
        spent = time.process_time() - start
        for client in clients:
            await client.aclose()
        return spent

    context = ssl.create_default_context()
    with FlakyServer() as server:
        pooled = asyncio.run(ask([server.base_url], [httpx.AsyncClient(verify=context, limits=httpx.Limits(max_connections=None))]))
        apart = asyncio.run(ask([server.base_url], [httpx.AsyncClient(verify=context, trust_env=False) for _ in range(32)]))
    assert apart < pooled


def test_certificates_are_read_where_there_may_be_any_and_nothing_is_trusted_without():
    local, other = Target("a", "http://127.0.0.1:1/v1"), Target("b", "https://api.example/v1")
    bare, full = make_lanes([local])[0]._context, make_lanes([local, other])[0]._context
    assert bare.verify_mode == full.verify_mode == ssl.CERT_REQUIRED
    assert bare.check_hostname
    assert full.check_hostname
    assert len(bare.get_ca_certs()) == 0 < len(full.get_ca_certs())
    assert [lanes._trusts_environment for lanes in make_lanes([local, other])] == [False, True]
