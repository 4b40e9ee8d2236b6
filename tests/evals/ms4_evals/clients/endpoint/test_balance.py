"""Turns: who gets the next request, and who waits for what."""

from __future__ import annotations

import asyncio
import time

import pytest

from ms4_evals.clients.endpoint.balance import Balance, Turn
from ms4_evals.clients.endpoint.circuit import Circuit
from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_train.errors import EvaluationError

BROKEN = RequestFailure("connection", "no connection")


async def turns(balance: Balance, count: int) -> list[Turn]:
    return [await asyncio.wait_for(balance.take_turn({}), 5) for _ in range(count)]


async def waits(balance: Balance, not_before: dict[int, float] | None = None) -> asyncio.Task[Turn]:
    task = asyncio.create_task(balance.take_turn(not_before or {}))
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


def run(coroutine):
    return asyncio.run(coroutine)


def test_requests_spread_over_free_places_and_never_exceed_the_bound():
    async def check():
        balance = Balance([Circuit() for _ in range(3)], 12)
        taken = await turns(balance, 12)
        assert [sum(turn.place.number == number for turn in taken) for number in range(3)] == [4, 4, 4]
        waiting = await waits(balance)
        balance.give_back(taken[5])
        assert (await waiting).place.number == taken[5].place.number
        assert balance.in_flight == balance.most_in_flight == 12

    run(check())


def test_a_server_with_less_room_gets_less():
    async def check():
        balance = Balance([Circuit() for _ in range(2)], 40)
        balance.places[0].limit.value = 5
        taken = await turns(balance, 40)
        assert sum(turn.place.number == 0 for turn in taken) <= 5

    run(check())


def test_a_failing_server_is_left_alone_and_probed_by_one():
    async def check():
        balance = Balance([Circuit(threshold=2, first_pause=0.1), Circuit()], 8)
        for turn in await turns(balance, 8):
            balance.give_back(turn, BROKEN if turn.place.number == 0 else None)
        assert not balance.places[0].circuit.is_closed
        taken = await turns(balance, 8)
        assert {turn.place.number for turn in taken} == {1}
        for turn in taken:
            balance.give_back(turn)
        await asyncio.sleep(0.11)
        taken = await turns(balance, 8)
        assert [turn.place.number for turn in taken].count(0) == 1
        probe = next(turn for turn in taken if turn.place.number == 0)
        balance.hear_from(probe)
        # The first token of its answer is enough to trust it again.
        assert balance.places[0].circuit.is_closed

    run(check())


def test_one_wait_holds_one_request_back_and_the_second_holds_all():
    async def check():
        balance = Balance([Circuit() for _ in range(1)], 8)
        taken = await turns(balance, 4)
        told = RequestFailure("rate-limit", "slow down", is_push_back=True, retry_after=0.15)
        balance.give_back(taken[0], told)
        balance.give_back((await turns(balance, 1))[0])
        balance.give_back(taken[1], told)
        balance.give_back((await turns(balance, 1))[0])
        balance.give_back(taken[2], told)
        balance.give_back(taken[3], told)
        start = time.monotonic()
        await turns(balance, 1)
        assert 0.14 <= time.monotonic() - start < 2

    run(check())


def test_a_request_does_not_go_back_before_its_time_but_goes_elsewhere():
    async def check():
        now = asyncio.get_running_loop().time()
        both = Balance([Circuit() for _ in range(2)], 8)
        assert (await asyncio.wait_for(both.take_turn({0: now + 60}), 1)).place.number == 1
        one = Balance([Circuit() for _ in range(1)], 8)
        start = time.monotonic()
        await asyncio.wait_for(one.take_turn({0: now + 0.15}), 2)
        assert time.monotonic() - start >= 0.13

    run(check())


def test_cancelling_a_waiter_or_a_turn_loses_no_place():
    async def check():
        balance = Balance([Circuit() for _ in range(1)], 1)
        (turn,) = await turns(balance, 1)
        first, second = await waits(balance), await waits(balance)
        first.cancel()
        balance.give_back(turn)
        # Given in the same moment in which it is cancelled.
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert balance.in_flight == 0
        await turns(balance, 1)

    run(check())


def test_an_outage_stops_everything_and_says_why():
    async def check():
        balance = Balance([Circuit(threshold=1), Circuit(threshold=1)], 4, outage_seconds=0.2)
        for turn in await turns(balance, 2):
            balance.give_back(turn, BROKEN)
        waiting = [await waits(balance), await waits(balance)]
        start = time.monotonic()
        for task in waiting:
            with pytest.raises(EvaluationError, match=r"no server has answered.*no connection"):
                await asyncio.wait_for(task, 5)
        assert time.monotonic() - start < 2
        with pytest.raises(EvaluationError):
            await balance.take_turn({})

    run(check())


def test_what_is_in_flight_keeps_an_outage_from_being_declared():
    async def check():
        balance = Balance([Circuit(threshold=1, first_pause=0.01)], 4, outage_seconds=0.05)
        (long, short) = await turns(balance, 2)
        balance.give_back(short, BROKEN)
        await asyncio.sleep(0.1)
        (probe,) = await turns(balance, 1)
        balance.give_back(probe, BROKEN)
        balance.give_back(long)
        assert balance.places[0].circuit.is_closed
        await turns(balance, 1)

    run(check())


def test_refusals_and_push_back_are_answers_of_a_server_that_is_well():
    async def check():
        balance = Balance([Circuit() for _ in range(1)], 64)
        for _ in range(30):
            for failure in (RequestFailure("refused", "too long", asks_again=False), RequestFailure("rate-limit", "x", is_push_back=True)):
                (turn,) = await turns(balance, 1)
                balance.give_back(turn, failure)
        assert balance.places[0].circuit.is_closed
        assert balance.places[0].limit.value == 1

    run(check())
