"""Decides which server gets the next request, and when: free places, circuits, pauses, and no more in flight than allowed.

Everything happens in one event loop; nothing here waits for the network.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_balance.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ms4_evals.clients.endpoint.circuit import Circuit
from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.endpoint.limit import AdaptiveLimit
from ms4_train.errors import EvaluationError

OUTAGE_SECONDS = 300.0
"""When no server has answered for so long, the run stops: what is stored stays, and it goes on when they are back."""

_HARMS = {"connection", "timeout", "server", "bad-response"}
"""Error classes that open a circuit. Being pushed back and being refused are answers of a server that is well."""


@dataclass
class Place:
    """What is known about one server.

    Attributes:
        number: its place in the configuration.
        paused_until: no request before, as the server asked. Once means the one request that it told; twice without an answer between
            them means all.
    """

    number: int
    limit: AdaptiveLimit
    circuit: Circuit
    in_flight: int = 0
    paused_until: float = 0.0
    waits_told: int = 0

    @property
    def free(self) -> int:
        """Requests that it would take beside those in flight."""
        return self.limit.value - self.in_flight

    def wakes_at(self, now: float) -> float | None:
        """When it may take requests again for another reason than that one in flight ends; None: it does not wait for the clock."""
        moment = max(self.paused_until, 0.0 if self.circuit.is_closed else self.circuit.opens_at)
        return moment if moment > now else None


@dataclass
class Turn:
    """One request on its way to a server; give it back with what came of it."""

    place: Place
    round: int


@dataclass
class _Waiter:
    future: asyncio.Future[Turn]
    not_before: Mapping[int, float]


class Balance:
    """The servers of one model.

    Args:
        circuits: one for each server.
        concurrency: requests in flight at most, over all of them.
        outage_seconds: see ``OUTAGE_SECONDS``.
        name: of the section, for messages.
    """

    def __init__(
        self, circuits: Sequence[Circuit], concurrency: int, *, outage_seconds: float = OUTAGE_SECONDS, name: str = "endpoint"
    ) -> None:
        # Any one of them may have to take everything when the others fail.
        self.places = [Place(number, AdaptiveLimit(concurrency), circuit) for number, circuit in enumerate(circuits)]
        self._concurrency = concurrency
        self._outage_seconds = outage_seconds
        self._name = name
        self._waiters: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None
        self._down_since: float | None = None
        self._last_failure = ""
        self._stopped: EvaluationError | None = None
        self.in_flight = 0
        self.most_in_flight = 0

    async def take_turn(self, not_before: Mapping[int, float]) -> Turn:
        """Wait until a server takes a request.

        Args:
            not_before: number of a server -> time of the loop before which this request may not go there.

        Raises:
            EvaluationError: no server has answered for too long.
        """
        if self._stopped is not None:
            raise self._stopped
        waiter = _Waiter(asyncio.get_running_loop().create_future(), not_before)
        self._waiters.append(waiter)
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.give_back(waiter.future.result(), cancelled=True)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def give_back(self, turn: Turn, failure: RequestFailure | None = None, *, cancelled: bool = False) -> None:
        """The request of a turn has ended: answered, failed, or cancelled."""
        now = asyncio.get_running_loop().time()
        place = turn.place
        place.in_flight -= 1
        self.in_flight -= 1
        if cancelled:
            place.circuit.gave_up()
        else:
            self._learn(turn, failure, now)
        self._watch_outage(now)
        self._serve()

    def hear_from(self, turn: Turn) -> None:
        """An answer has begun: the server is back, which others need not wait to the end of the answer to hear."""
        if not turn.place.circuit.is_closed:
            turn.place.circuit.succeeded()
            self._down_since = None
            self._serve()

    def trip(self, number: int) -> None:
        """Leave a server alone that was found out of reach before any request."""
        now = asyncio.get_running_loop().time()
        self.places[number].circuit.trip(now)
        self._watch_outage(now)

    def _learn(self, turn: Turn, failure: RequestFailure | None, now: float) -> None:
        place = turn.place
        if failure is not None and (failure.error_class in _HARMS or failure.is_misconfigured):
            self._last_failure = failure.message
            place.circuit.failed(now)
        else:
            place.circuit.succeeded()
        if failure is None:
            place.waits_told = 0
            place.limit.succeeded(turn.round)
        elif failure.is_push_back:
            place.limit.pushed_back(turn.round)
            if failure.retry_after:
                place.waits_told += 1
                if place.waits_told > 1:
                    place.paused_until = max(place.paused_until, now + failure.retry_after)

    def _watch_outage(self, now: float) -> None:
        if any(place.circuit.is_closed for place in self.places):
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now

    def _serve(self) -> None:
        """Give turns to whoever waits and can have one; set the clock for the rest."""
        now = asyncio.get_running_loop().time()
        self._check_outage(now)
        left: list[_Waiter] = []
        for position, waiter in enumerate(self._waiters):
            if self.in_flight >= self._concurrency:
                left.extend(self._waiters[position:])
                break
            if waiter.future.done():
                continue
            place = self._choose(waiter.not_before, now)
            if place is None:
                left.append(waiter)
                continue
            place.circuit.sent()
            place.in_flight += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            waiter.future.set_result(Turn(place, place.limit.round))
        self._waiters = left
        self._set_clock(now)

    def _choose(self, not_before: Mapping[int, float], now: float) -> Place | None:
        able = [
            place
            for place in self.places
            if place.free > 0 and place.paused_until <= now and place.circuit.may_send(now) and not_before.get(place.number, 0.0) <= now
        ]
        # A probe that is due goes first: a server that has come back is found out by one request only.
        return max(able, key=lambda place: (not place.circuit.is_closed, place.free), default=None)

    def _set_clock(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiters:
            return
        moments = [moment for place in self.places if (moment := place.wakes_at(now)) is not None]
        moments += [moment for waiter in self._waiters for moment in waiter.not_before.values() if moment > now]
        if self._down_since is not None and self.in_flight == 0:
            moments.append(self._down_since + self._outage_seconds)
        if moments:
            # A little late rather than a little early: the clock's resolution must not make a turn come in vain.
            self._timer = asyncio.get_running_loop().call_at(min(moments) + 0.001, self._serve)

    def _check_outage(self, now: float) -> None:
        # What is in flight may still be answered, and ends within the time that a request has.
        if self._down_since is None or self.in_flight or now - self._down_since < self._outage_seconds:
            return
        self._stopped = self._stopped or EvaluationError(
            f"no server has answered for {self._outage_seconds:.0f} s; last: {self._last_failure or 'no answer'}.",
            key=f"{self._name}.servers",
            fix="start them and run again: finished samples are stored.",
        )
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(self._stopped)
        self._waiters = []

    def stop(self) -> None:
        """Let go of the clock."""
        if self._timer is not None:
            self._timer.cancel()
