"""Requests on their way through the engine: submitted from the event loop, answered in the engine's thread, given up when need be.

Events pass from thread to loop without waiting for anybody: the engine never stands still for a slow client, whose events are bounded in
number instead. Exercise it: ``pytest tests/ms4_train/serving/test_answering.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Literal

from ms4_train.inference.background import EngineThread
from ms4_train.inference.request import Completion, Event, FinishEvent, GenerationRequest
from ms4_train.serving.failures import engine_failure

StopReason = Literal["gone", "late", "slow", "stopping"]
"""Why answers are given up: the client has gone, time is over, the client takes too little of its stream, the server stops."""

_CHECK_SECONDS = 1.0


class Answering:
    """The answers to one call.

    Args:
        thread: runs the engine.
        requests: of the call.
        is_streamed: whether tokens are wanted as they come; else only finished answers are.
        buffered_events: that may wait to be taken.
        on_end: called in the loop once the engine has let go of all answers, whoever still listens.

    Attributes:
        stopped: why the answers were given up.
    """

    def __init__(
        self,
        thread: EngineThread,
        requests: Sequence[GenerationRequest],
        *,
        is_streamed: bool,
        buffered_events: int,
        on_end: Callable[[], None],
    ) -> None:
        self.stopped: StopReason | None = None
        self._thread = thread
        self._requests = requests
        self._is_streamed = is_streamed
        self._buffered_events = buffered_events
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._posted: deque[Event] = deque()  # by the engine's thread
        self._is_called = False
        self._submitted: list[GenerationRequest] = []
        self._unfinished = 0  # answers that the engine holds
        self._is_submitting = False
        self._has_ended = False
        self._events: list[Event] = []

    @property
    def unfinished(self) -> int:
        """Answers that are not there yet."""
        return self._unfinished

    async def submit(self, executor: Executor) -> None:
        """Hand the requests to the engine.

        Raises:
            EngineError: it cannot serve one of them; none is then left with it.
        """
        self._is_submitting = True
        try:
            for request in self._requests:
                self._unfinished += request.n
                try:
                    await self._loop.run_in_executor(executor, self._thread.submit, request, self._post)
                except BaseException:
                    self._unfinished -= request.n
                    raise
                self._submitted.append(request)
        except BaseException:
            self.stop("gone")
            raise
        finally:
            self._is_submitting = False
            self._end_if_done()

    def stop(self, reason: StopReason) -> None:
        """Give the answers up; the first reason counts."""
        if self.stopped is None:
            self.stopped = reason
            for request in self._submitted:
                with contextlib.suppress(RuntimeError):  # the thread has ended
                    self._thread.cancel(request.request_id)
            self._wake.set()

    async def next_events(self, seconds: float) -> list[Event]:
        """Events that have come; empty after ``seconds`` without any, or when the answers are given up.

        Raises:
            ApiError: 503: the engine has died.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _CHECK_SECONDS)):
                await self._wake.wait()
        self._wake.clear()
        events, self._events = self._events, []
        if not events and self.stopped is None and self._thread.error is not None:
            raise engine_failure(self._thread.error)
        return [] if self.stopped is not None else events

    async def completions(self) -> list[Completion]:
        """All answers, in the order of requests and indices; fewer where they are given up."""
        found: dict[tuple[str, int], Completion] = {}
        total = sum(request.n for request in self._requests)
        while len(found) < total and self.stopped is None:
            for event in await self.next_events(_CHECK_SECONDS):
                if isinstance(event, FinishEvent):
                    found[event.completion.request_id, event.completion.index] = event.completion
        places = {request.request_id: number for number, request in enumerate(self._requests)}
        return [found[key] for key in sorted(found, key=lambda key: (places[key[0]], key[1]))]

    def _post(self, event: Event) -> None:
        """Called in the engine's thread."""
        if not self._is_streamed and not isinstance(event, FinishEvent):
            return
        self._posted.append(event)
        if not self._is_called:
            self._is_called = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        # In this order: an event that is posted in between is collected now, and the call that it makes finds nothing.
        self._is_called = False
        posted = [self._posted.popleft() for _ in range(len(self._posted))]
        self._unfinished -= sum(isinstance(event, FinishEvent) for event in posted)
        if self.stopped is None:
            self._events += posted
            if len(self._events) > self._buffered_events:
                self._events = []
                self.stop("slow")
            self._wake.set()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._unfinished == 0 and not self._is_submitting and not self._has_ended:
            self._has_ended = True
            self._on_end()
