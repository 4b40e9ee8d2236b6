"""Answers requests through the servers of one model: chooses, sends, asks again, gives up, all in one event loop.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_pool.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.balance import OUTAGE_SECONDS, Balance, Turn
from ms4_evals.clients.endpoint.circuit import Circuit
from ms4_evals.clients.endpoint.exchange import Call, Exchanged, exchange
from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.endpoint.lanes import Lanes, make_lanes
from ms4_evals.clients.endpoint.replies import Reply, Usage
from ms4_evals.clients.endpoint.retries import Backoff
from ms4_evals.clients.endpoint.targets import Target, section_name
from ms4_evals.identity import content_hash
from ms4_train.config.endpoint import EndpointSection, Prices
from ms4_train.errors import EvaluationError

START_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to reach a first server before a run begins."""

REFUSALS_IN_A_ROW = 5
"""So many 401, 403 or 404 in a row from every server stop the run though they had answered before: key or model are gone."""

REFUSED_FROM_THE_START = 16
"""When so many requests were refused as invalid and none was answered, the settings are wrong and not the requests."""


@dataclass
class _Asking:
    """One request on its way through attempts."""

    request: SampleRequest
    prompt_hash: str = ""
    attempts: int = 0
    not_before: dict[int, float] = field(default_factory=dict)
    body: bytes = b""
    body_of: Target | None = None
    chunks: int = 0


class EndpointPool:
    """The servers of a section inside a running event loop.

    Args:
        section: as configured.
        targets: from ``make_targets``; what is learned about them stays in them.
        backoff: between attempts.
        outage_seconds: without any server after which everything stops.
    """

    def __init__(
        self,
        section: EndpointSection,
        targets: Sequence[Target],
        *,
        backoff: Backoff | None = None,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        self._section = section
        self._targets = targets
        self._backoff = backoff or Backoff()
        # A server is left alone for longer than one request waits.
        pauses = 2 * self._backoff.first, 2 * self._backoff.longest
        circuits = [Circuit(first_pause=pauses[0], longest_pause=pauses[1]) for _ in targets]
        self._balance = Balance(circuits, section.concurrency, outage_seconds=outage_seconds, name=section_name(section))
        self._lanes: list[Lanes] = []
        self._refused = 0
        self._asking = self._deferred = 0
        self._news = asyncio.Event()
        self.generated_tokens = 0

    @property
    def most_in_flight(self) -> int:
        """Requests at once, at most until now."""
        return self._balance.most_in_flight

    async def start(self) -> None:
        """Reach the servers: each is asked what it serves, and one at least must answer.

        Raises:
            EvaluationError: none can be reached, or one refuses the key, the address or the model.
        """
        self._lanes = make_lanes(self._targets)
        failures = await self._reach_all()
        for wait in START_WAITS:
            if not all(failures):
                break
            await asyncio.sleep(wait * self._backoff.first / Backoff.first)
            failures = await self._reach_all()
        if failures[0] and all(failures):
            raise self._targets[0].error(failures[0])
        for number, failure in enumerate(failures):
            if failure:
                self._balance.trip(number)

    async def _reach_all(self) -> list[RequestFailure | None]:
        return await asyncio.gather(*(self._reach(number) for number in range(len(self._targets))))

    async def _reach(self, number: int) -> RequestFailure | None:
        target = self._targets[number]
        try:
            async with self._lanes[number].lane() as client:
                await target.prepare(client, self._section.timeout)
        except RequestFailure as failure:
            if failure.is_misconfigured:
                raise target.error(failure) from failure
            return failure
        return None

    async def close(self) -> None:
        """Close the connections."""
        self._balance.stop()
        for lanes in self._lanes:
            await lanes.close()

    async def ask(self, request: SampleRequest) -> SampleAnswer:
        """The answer, after as many attempts as it takes and as there are.

        Raises:
            EvaluationError: nothing more can be answered.
        """
        self._asking += 1
        try:
            return await self._ask(_Asking(request))
        finally:
            self._asking -= 1
            self._tell()

    async def _ask(self, asking: _Asking) -> SampleAnswer:
        while True:
            turn = await self._balance.take_turn(asking.not_before)
            target = self._targets[turn.place.number]
            asking.attempts += 1
            is_given_back = False
            try:
                exchanged = await self._attempt(asking, target, turn)
                self._balance.give_back(turn)
                is_given_back = True
                await self._compare(target, exchanged.reply)
            except RequestFailure as failure:
                self.generated_tokens -= asking.chunks
                if not is_given_back:
                    self._balance.give_back(turn, failure)
                self._stop_if_hopeless(target, failure)
                if not self._asks_again(target, failure) or asking.attempts >= self._section.max_attempts:
                    return self._failed(asking, target, failure)
                wait = self._backoff.seconds(asking.attempts, failure.retry_after, is_push_back=failure.is_push_back)
                asking.not_before[turn.place.number] = asyncio.get_running_loop().time() + wait
            except BaseException:
                if not is_given_back:
                    self._balance.give_back(turn, cancelled=True)
                raise
            else:
                target.has_answered = True
                target.refusals = 0
                told = exchanged.reply.usage.completion_tokens
                self.generated_tokens += (asking.chunks if told is None else told) - asking.chunks
                return self._answered(asking, target, exchanged)

    async def _compare(self, target: Target, reply: Reply) -> None:
        """Judge a reply beside others of its server; one of the first waits until there are some, or until all that ask wait for that."""
        while not target.habits.is_known(reply) and self._deferred + 1 < self._asking:
            self._deferred += 1
            try:
                await self._news.wait()
            finally:
                self._deferred -= 1
        target.habits.check(reply)

    def _tell(self) -> None:
        """Wake what waits for others."""
        self._news.set()
        self._news = asyncio.Event()

    async def _attempt(self, asking: _Asking, target: Target, turn: Turn) -> Exchanged:
        asking.chunks = 0
        async with self._lanes[turn.place.number].lane() as client:
            return await self._attempt_on(client, asking, target, turn)

    async def _attempt_on(self, client: httpx.AsyncClient, asking: _Asking, target: Target, turn: Turn) -> Exchanged:
        await target.prepare(client, self._section.timeout)
        assert target.kind is not None
        assert target.model is not None
        self._write_body(asking, target)
        call = Call(target.url, target.headers, asking.body, self._section.stream, self._section.timeout, asking.request.max_tokens)

        def count() -> None:
            if asking.chunks == 0:
                self._balance.hear_from(turn)
            asking.chunks += 1
            self.generated_tokens += 1

        exchanged = await exchange(client, call, target.kind, count)
        target.habits.learn(exchanged.reply, target.model)
        self._tell()
        return exchanged

    def _write_body(self, asking: _Asking, target: Target) -> None:
        if asking.body_of is target:
            return
        assert target.kind is not None
        assert target.model is not None
        body = target.kind.body(asking.request, target.model, stream=self._section.stream, extra_body=self._section.extra_body)
        asking.body = json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
        asking.body_of = target
        asking.prompt_hash = prompt_hash(body["messages"], self.model_name, asking.request.mode)

    @property
    def model_name(self) -> str:
        """Of the first server that was reached: servers of one section serve one model, whatever each calls it."""
        return next((target.model for target in self._targets if target.model is not None), "")

    def _asks_again(self, target: Target, failure: RequestFailure) -> bool:
        return failure.asks_again or (failure.is_misconfigured and target.has_answered)

    def _stop_if_hopeless(self, target: Target, failure: RequestFailure) -> None:
        """Raise when this failure means that no further request would be answered either."""
        if failure.is_misconfigured:
            target.refusals += 1
            if not target.has_answered or all(each.refusals >= REFUSALS_IN_A_ROW for each in self._targets):
                raise target.error(failure) from failure
        elif failure.error_class == "refused" and not failure.is_too_long:
            self._refused += 1
            if self._refused >= REFUSED_FROM_THE_START and not any(each.has_answered for each in self._targets):
                raise EvaluationError(
                    target.words(f"{target.label}: every request was refused; the last: {failure.message}."),
                    key=section_name(self._section),
                    fix="check kind and extra_body, and the sampling of the modes.",
                ) from failure

    def _answered(self, asking: _Asking, target: Target, exchanged: Exchanged) -> SampleAnswer:
        reply = exchanged.reply
        return SampleAnswer(
            prompt_hash=asking.prompt_hash,
            thinking=reply.thinking,
            answer=reply.answer,
            thinking_is_open=reply.thinking_is_open,
            finish_reason=reply.finish_reason,
            seconds=exchanged.seconds,
            prompt_tokens=reply.usage.prompt_tokens,
            usage_tokens=reply.usage.completion_tokens,
            usage_thinking_tokens=reply.usage.thinking_tokens,
            cost=cost_of(reply.usage, self._section.prices),
            endpoint=target.label,
            attempts=asking.attempts,
            first_token_seconds=exchanged.first_token_seconds,
        )

    def _failed(self, asking: _Asking, target: Target, failure: RequestFailure) -> SampleAnswer:
        if not asking.prompt_hash:
            asking.prompt_hash = prompt_hash(asking.request.messages, self.model_name, asking.request.mode)
        return SampleAnswer(
            prompt_hash=asking.prompt_hash,
            thinking="",
            answer="",
            thinking_is_open=False,
            finish_reason="",
            seconds=0.0,
            endpoint=target.label,
            attempts=asking.attempts,
            error=target.words(failure.message),
            error_class=failure.error_class,
        )


def prompt_hash(messages: Sequence[Any], model: str, mode: str) -> str:
    """Identity of what a model behind a server read: how its template lays that out, and in which tokens, cannot be seen from here."""
    return content_hash({"messages": [dict(message) for message in messages], "model": model, "reasoning_effort": mode})


def cost_of(usage: Usage, prices: Prices | None) -> float | None:
    """Of one answer; None where prices or counts are not known. Attempts that failed are not in it: their tokens are not told."""
    if prices is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return (usage.prompt_tokens * prices.input + usage.completion_tokens * prices.output) / 1e6
