"""Attempts, servers and ends of requests, against real servers with scripted faults."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
from support.endpoint_requests import answers, quick, requests, section, texts
from support.flaky_server import FlakyServer

from ms4_evals.clients.base import SampleAnswer
from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_evals.clients.endpoint.pool import REFUSALS_IN_A_ROW, EndpointPool, cost_of, prompt_hash
from ms4_evals.clients.endpoint.replies import Usage
from ms4_evals.clients.endpoint.targets import make_targets
from ms4_evals.identity import content_hash
from ms4_train.config.endpoint import Prices
from ms4_train.errors import EvaluationError


def client(*urls: str, outage_seconds: float = 300.0, **options) -> EndpointClient:
    return EndpointClient(section(*urls, **options), backoff=quick(), outage_seconds=outage_seconds)


@pytest.mark.parametrize("fault", ["500", "cut", "429-garbage", "reset", "html"])
def test_attempts_are_bounded_and_their_number_is_told(fault):
    with FlakyServer(faults=1.0, kinds=[fault]) as server:
        found = answers(client(server.base_url, max_attempts=4), requests(3))
        assert {one.attempts for one in found.values()} == {4}
        assert server.attempts.total() == 12
    for one in found.values():
        assert one.error
        assert one.error_class in {"server", "bad-response", "rate-limit", "connection"}
        assert (one.thinking, one.answer, one.finish_reason, one.usage_tokens) == ("", "", "", None)
        assert one.endpoint == server.base_url[7:-3]
        assert one.prompt_hash


def test_an_attempt_that_fails_is_followed_by_one_that_does_not():
    with FlakyServer(faults=1.0, kinds=["cut", "500", "invalid-utf8"], max_faults=2) as server:
        found = answers(client(server.base_url), requests(6))
        assert {one.attempts for one in found.values()} == {3}
        server.faults = 0.0
        assert texts(found) == texts(answers(client(server.base_url), requests(6)))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_server_will_not_take_is_one_samples_error_at_once(status):
    with FlakyServer() as server:
        ask = client(server.base_url)
        answers(ask, requests(2))
        server.status = status
        found = answers(ask, requests(20))
        assert {(one.error_class, one.attempts) for one in found.values()} == {("refused", 1)}


def test_when_everything_is_refused_from_the_start_the_run_stops():
    with FlakyServer(status=400) as server, pytest.raises(EvaluationError, match=r"every request was refused.*scripted 400"):
        answers(client(server.base_url, concurrency=2), requests(100))
    assert server.attempts.total() < 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_within_seconds(status):
    with FlakyServer(status=status) as server:
        start = time.monotonic()
        with pytest.raises(EvaluationError, match=f"127.0.0.1:{server.port}: HTTP {status}.*api_key_env"):
            answers(EndpointClient(section(server.base_url)), requests(50))
        assert time.monotonic() - start < 5
        assert server.attempts.total() <= 50


def test_a_model_that_is_not_there_stops_the_run():
    with FlakyServer() as server:
        wrong = section(server.base_url).model_copy(
            update={"servers": [section(server.base_url).servers[0].model_copy(update={"model": "absent"})]}
        )
        with pytest.raises(EvaluationError, match="`absent` does not exist"):
            answers(EndpointClient(wrong), requests(5))


def test_a_key_that_is_revoked_within_a_run_stops_it_after_a_few():
    with FlakyServer() as server:
        ask = client(server.base_url, concurrency=2)
        answers(ask, requests(2))
        server.status = 401
        with pytest.raises(EvaluationError, match="HTTP 401"):
            answers(ask, requests(50))
        assert server.attempts.total() <= 2 + REFUSALS_IN_A_ROW + 2


def test_nobody_there_is_said_within_seconds():
    with FlakyServer() as server:
        url = server.base_url
    start = time.monotonic()
    with pytest.raises(EvaluationError, match=r"no connection.*start it"):
        answers(client(url), requests(1))
    assert time.monotonic() - start < 5


def test_servers_share_the_work_and_one_that_is_down_is_left_alone():
    with ExitStack() as stack:
        servers = [stack.enter_context(FlakyServer(seconds=0.005)) for _ in range(3)]
        servers[2].stop()
        ask = client(*(server.base_url for server in servers), concurrency=8)
        found = answers(ask, requests(200))
        assert not any(one.error for one in found.values())
        shares = [server.attempts.total() for server in servers]
        assert shares[0] + shares[1] == 200
        assert min(shares[:2]) > 60
        # Known to be away from the start, it was only probed: after 0.02 s, 0.04 s, 0.08 s ... where waits are as short as here.
        assert sum(one.attempts - 1 for one in found.values()) <= 10


def test_a_server_that_dies_within_a_run_loses_nothing_and_is_found_again():
    with FlakyServer(seconds=0.01, token_seconds=0.001) as first, FlakyServer(seconds=0.01, token_seconds=0.001) as second:
        ask = client(first.base_url, second.base_url, concurrency=8)
        seen: dict[str, SampleAnswer] = {}

        def finish(request, answer) -> None:
            assert request.request_id not in seen
            seen[request.request_id] = answer
            if len(seen) == 30:
                first.stop()
            if len(seen) == 60:
                again.__enter__()

        again = FlakyServer(port=first.port, seconds=0.01)
        ask.answer(requests(150), finish, lambda tokens: None)
        again.stop()
        assert len(seen) == 150
        assert not any(one.error for one in seen.values())
        assert again.answered.total() > 5
        expected = texts(answers(client(second.base_url), requests(150)))
        assert texts(seen) == expected


def test_when_all_servers_are_gone_the_run_stops_with_what_it_has():
    with FlakyServer() as server:
        ask = client(server.base_url, concurrency=4, outage_seconds=0.5, max_attempts=1000)
        seen: list[str] = []

        def finish(request, answer) -> None:
            seen.append(request.request_id)
            if len(seen) == 20:
                server.stop()

        with pytest.raises(EvaluationError, match="no server has answered for"):
            ask.answer(requests(400), finish, lambda tokens: None)
        assert 20 <= len(seen) < 40


def test_never_more_in_flight_than_allowed_and_fewer_where_the_server_pushes_back():
    with FlakyServer(seconds=0.004) as server:
        ask = client(server.base_url, concurrency=7)
        answers(ask, requests(60))
        assert 5 <= server.most_in_flight <= ask.most_in_flight == 7
    with FlakyServer(seconds=0.004, capacity=5) as server:
        # Thirty-two at once where five are allowed, as an account with a limit has it.
        found = answers(client(server.base_url, concurrency=32, max_attempts=20), requests(300))
        assert not any(one.error for one in found.values())
        pushed = server.attempts.total() - 300
        # Without adapting, 27 of the first 32 and then most of each further round would be pushed back.
        assert pushed < 150


def test_retry_after_is_kept():
    with FlakyServer(faults=1.0, kinds=["429-seconds"], max_faults=1) as server:
        found = answers(client(server.base_url), requests(2))
        assert {one.attempts for one in found.values()} == {2}
        times: dict[str, list[float]] = {}
        for moment, key in server.arrivals:
            times.setdefault(key, []).append(moment)
        assert all(second - first >= 1.0 for first, second in times.values())


@pytest.mark.parametrize("stream", [True, False])
def test_what_an_answer_carries(stream):
    with FlakyServer(seconds=0.02) as server:
        ask = client(server.base_url, stream=stream, prices={"input": 2.0, "output": 10.0})
        (request,) = requests(1, question=lambda number: "Why?")
        (one,) = answers(ask, [request]).values()
    assert one.endpoint == f"127.0.0.1:{server.port}"
    assert one.seconds >= 0.02
    assert (one.first_token_seconds is not None) == stream
    assert one.cost == pytest.approx((one.prompt_tokens * 2.0 + one.usage_tokens * 10.0) / 1e6)
    messages = [{"role": "user", "content": "Why?"}]
    assert one.prompt_hash == content_hash({"messages": messages, "model": "scripted-model", "reasoning_effort": "none"})


def test_costs_are_told_only_where_everything_is_known():
    prices = Prices(input=1.0, output=2.0)
    assert cost_of(Usage(1_000_000, 500_000), prices) == 2.0
    assert cost_of(Usage(None, 5), prices) is cost_of(Usage(5, None), prices) is cost_of(Usage(5, 5), None) is None


def test_what_was_read_has_one_name_whichever_server_read_it():
    messages = [{"role": "user", "content": "é"}]
    assert prompt_hash(messages, "m", "none") != prompt_hash(messages, "m", "high") != prompt_hash(messages, "n", "high")
    with FlakyServer(model="one-name") as first, FlakyServer(model="/other/name") as second:
        found = answers(client(first.base_url, second.base_url, concurrency=4), requests(20))
        assert {one.endpoint for one in found.values()} == {f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"}
        expected = {request.request_id: prompt_hash(request.messages, "one-name", request.mode) for request in requests(20)}
        assert {name: one.prompt_hash for name, one in found.items()} == expected


def test_a_cancelled_question_leaves_its_place():
    async def check(url: str) -> None:
        one = section(url, concurrency=1)
        pool = EndpointPool(one, make_targets(one), backoff=quick())
        await pool.start()
        first, second, third = requests(3)
        asking = asyncio.create_task(pool.ask(first))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not (await asyncio.wait_for(pool.ask(second), 5)).error
        assert not (await asyncio.wait_for(pool.ask(third), 5)).error
        await pool.close()

    with FlakyServer(seconds=0.2) as server:
        asyncio.run(check(server.base_url))


def test_the_first_answers_wait_for_each_other_and_nobody_waits_for_ever():
    """Whether a chunk came twice is known by comparison; one answer alone, and few beside each other, are judged all the same."""
    for count, concurrency in ((1, 8), (2, 8), (5, 1), (40, 2)):
        with FlakyServer() as server:
            found = answers(client(server.base_url, concurrency=concurrency), requests(count))
            assert not any(one.error for one in found.values())
    with FlakyServer() as server:
        expected = texts(answers(client(server.base_url), requests(12)))
    with FlakyServer() as server:
        ask = client(server.base_url, concurrency=4)
        answers(ask, requests(12))
        server.faults, server.kinds, server.max_faults = 1.0, ("duplicate",), 1
        server.attempts.clear()
        found = answers(ask, requests(12))
        assert {one.attempts for one in found.values()} == {2}
        assert texts(found) == expected
