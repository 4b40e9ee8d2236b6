"""One call of the API from its first byte to its last, whatever it asks for: admitted, read, answered or given up, logged and counted.

Exercise it: ``pytest tests/ms4_train/serving/test_calls.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ms4_train.errors import MS4Error
from ms4_train.inference.request import Completion, Event, FinishEvent, GenerationRequest
from ms4_train.serving.answering import Answering, StopReason
from ms4_train.serving.body import ClientGoneError, parse_body, read_body
from ms4_train.serving.event_stream import DONE, KEEP_ALIVE, EventStream, encoded
from ms4_train.serving.failures import ApiError, engine_failure, from_ms4_error, from_validation
from ms4_train.serving.fields import Strict
from ms4_train.serving.presence import watching
from ms4_train.serving.service import Service

LOG = logging.getLogger("ms4_train.serving")
CLIENT_GONE = 499
"""The status that the log and the metrics give to a request whose client has gone; nobody reads it."""

Fields = TypeVar("Fields", bound=Strict)


class Answers(Protocol):
    """Puts completions into the form of an endpoint."""

    def response(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole response."""
        ...

    def chunks(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """What a stream says of some events."""
        ...

    def usage_chunk(self) -> dict[str, Any]:
        """What a stream says of its tokens."""
        ...


@dataclass(frozen=True)
class Job:
    """What a body asks for.

    Attributes:
        requests: for the engine.
        answers: make its response.
        is_streamed: chunk by chunk.
        counts_tokens: whether the stream ends with its usage.
    """

    requests: Sequence[GenerationRequest]
    answers: Answers
    is_streamed: bool
    counts_tokens: bool


class Call:
    """One request of a client.

    Args:
        service: of the server.
        endpoint: its name in log and metrics.
        request_id: tells it apart there, and in the response's header.

    Attributes:
        form_field: the field that asks for a form of the answer, for errors.

    Raises:
        ApiError: 429 or 503.
    """

    def __init__(self, service: Service, endpoint: str, request_id: str) -> None:
        self.service = service
        self.request_id = request_id
        self._endpoint = endpoint
        self._began = time.monotonic()
        self._is_open = True
        self._finished: list[Completion] = []
        self._deadline = self._began
        self._body_bytes = 0
        self.form_field: str | None = None
        self._answering: Answering | None = None
        self.ticket = service.admission.enter()

    async def read(self, request: Request, kind: type[Fields], also: Callable[[Fields], None]) -> tuple[Fields, dict[str, Any]]:
        """The body, checked, and as it came.

        Args:
            request: of the client.
            kind: the body's form.
            also: checks what the form cannot say.

        Raises:
            ApiError: what is wrong with it.
            ClientGoneError: nobody waits any more.
        """
        settings = self.service.settings
        data = await read_body(request, self.ticket, settings)
        # Parsed text, and images decoded from it, take about as much again, each.
        self.ticket.hold(2 * len(data))
        self._body_bytes = 3 * len(data)
        self._deadline = time.monotonic() + settings.request_seconds

        def check() -> tuple[Fields, dict[str, Any]]:
            body = parse_body(data, settings)
            try:
                fields = kind.model_validate(body)
            except ValidationError as error:
                raise from_validation(error, body) from None
            also(fields)
            return fields, body

        return await self.work(check)

    async def work(self, function: Callable[[], Any]) -> Any:
        """Run a function in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.service.workers, function)

    async def answer(self, request: Request, job: Job) -> Response:
        """The response to a job. The call ends with it, and the ticket with the engine's last event.

        Raises:
            ApiError: it cannot be answered.
        """
        self.ticket.let_go(self._body_bytes)
        self._body_bytes = 0
        service = self.service
        answering = self._answering = Answering(
            service.thread,
            job.requests,
            is_streamed=job.is_streamed,
            buffered_events=service.settings.buffered_events,
            on_end=lambda: self._let_go(answering),
        )
        service.working.add(answering)
        await answering.submit(service.workers)
        timer = asyncio.get_running_loop().call_later(self._deadline - time.monotonic(), answering.stop, "late")
        if job.is_streamed:
            pieces = self._pieces(job, answering, timer)
            return EventStream(pieces, lambda: answering.stop("gone"), {"X-Request-Id": self.request_id})
        try:
            async with watching(request.receive, lambda: answering.stop("gone")):
                completions = await answering.completions()
        finally:
            timer.cancel()
        self._finished = completions
        if answering.stopped is not None:
            raise self._given_up(answering.stopped)
        # In a worker: the logprobs of a long answer take seconds to spell, in which other clients are served.
        data = await self.work(lambda: json.dumps(job.answers.response(completions), ensure_ascii=False, separators=(",", ":")).encode())
        self.close(200, _outcome(completions))
        return Response(data, media_type="application/json", headers={"X-Request-Id": self.request_id})

    async def _pieces(self, job: Job, answering: Answering, timer: asyncio.TimerHandle) -> AsyncGenerator[bytes]:
        """The encoded events of a stream. What goes wrong after its first byte is its last event."""
        total = sum(request.n for request in job.requests)
        quiet_since = time.monotonic()
        try:
            while len(self._finished) < total and answering.stopped is None:
                events = await answering.next_events(self.service.settings.keep_alive_seconds)
                self._finished += [event.completion for event in events if isinstance(event, FinishEvent)]
                told = await self._told(job, events)
                if told or time.monotonic() - quiet_since >= self.service.settings.keep_alive_seconds:
                    quiet_since = time.monotonic()
                    yield told or KEEP_ALIVE
            if answering.stopped is not None:
                raise self._given_up(answering.stopped)
            if job.counts_tokens:
                yield encoded(job.answers.usage_chunk())
            yield DONE
            self.close(200, _outcome(self._finished))
        except ApiError as error:
            self.close(error.status, error.error_code)
            yield encoded(error.body) + DONE
        finally:
            timer.cancel()
            answering.stop("gone")
            self.close(CLIENT_GONE, "gone")

    async def _told(self, job: Job, events: list[Event]) -> bytes:
        """The chunks of some events, encoded; in a worker where logprobs of a whole prompt are among them, for they take long to spell."""

        def told() -> bytes:
            return b"".join([encoded(self._with_usage(chunk, job)) for chunk in job.answers.chunks(events)])

        is_long = any(isinstance(event, FinishEvent) and event.completion.prompt_logprobs for event in events)
        return await self.work(told) if is_long else told()

    @staticmethod
    def _with_usage(chunk: dict[str, Any], job: Job) -> dict[str, Any]:
        return chunk | {"usage": None} if job.counts_tokens else chunk

    def _given_up(self, reason: StopReason) -> ApiError:
        settings = self.service.settings
        if reason == "late":
            return ApiError(504, f"The answer took longer than {settings.request_seconds:g} seconds.", code="timeout")
        if reason == "stopping":
            return ApiError(503, "The server is stopping.", code="stopping", retry_after=self.service.admission.retry_after)
        if reason == "slow":
            return ApiError(503, "The stream was taken too slowly.", code="slow")
        return ApiError(CLIENT_GONE, "The client has gone.", code="gone")

    def end_without_answer(self) -> None:
        """End a call that asked for nothing of the engine."""
        self.ticket.release()
        self.close(200, "done")

    def _let_go(self, answering: Answering) -> None:
        self.service.working.discard(answering)
        self.ticket.release()

    def fail(self, error: Exception) -> ApiError:
        """End the call with an error; returns what the client is told.

        Args:
            error: what our checks found, or what went wrong; a defect of ours is raised again.
        """
        if self._answering is None:
            self.ticket.release()  # else the engine's last event does
        if isinstance(error, ClientGoneError):
            error = ApiError(CLIENT_GONE, "The client has gone.", code="gone")
        if not isinstance(error, MS4Error):
            LOG.exception("request %s failed", self.request_id, exc_info=error)
            self.close(500, "defect")
            raise error
        failure = from_ms4_error(error, form_field=self.form_field)
        if self.service.thread.error is not None and failure.status == 400:
            failure = engine_failure(self.service.thread.error)
        failure.request_id = self.request_id
        self.close(failure.status, failure.error_code)
        return failure

    def close(self, status: int, outcome: str) -> None:
        """Log and count the call's end; a second time does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        seconds = time.monotonic() - self._began
        metrics = self.service.metrics
        for completion in self._finished:
            metrics.observe_answer(completion)
        if outcome in ("stop", "length"):
            self.service.admission.note_seconds(seconds)
        metrics.observe_request(self._endpoint, status, outcome)
        first = [completion for completion in self._finished if completion.index == 0]
        LOG.info(
            "%s %s status=%d outcome=%s answers=%d prompt=%d cached=%d generated=%d queue=%.3fs first=%.3fs total=%.3fs",
            self.request_id,
            self._endpoint,
            status,
            outcome,
            len(self._finished),
            sum(completion.prompt_tokens for completion in first),
            sum(completion.cached_tokens for completion in first),
            sum(completion.generated_tokens for completion in self._finished),
            max((completion.queue_seconds for completion in self._finished), default=0.0),
            min((completion.first_token_seconds for completion in self._finished), default=0.0),
            seconds,
        )


def _outcome(completions: Sequence[Completion]) -> str:
    """One word for several answers: the least happy ending."""
    reasons = {completion.finish_reason for completion in completions}
    return next((reason for reason in ("error", "cancelled", "length") if reason in reasons), "stop")
