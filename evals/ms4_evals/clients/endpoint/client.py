"""A model behind OpenAI-compatible servers as a client of the evaluation.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_client.py tests/reliability/test_flaky_server.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.balance import OUTAGE_SECONDS
from ms4_evals.clients.endpoint.pool import EndpointPool
from ms4_evals.clients.endpoint.retries import Backoff
from ms4_evals.clients.endpoint.targets import Target, make_targets, section_name
from ms4_train.config.endpoint import EndpointSection
from ms4_train.errors import EvaluationError

PROGRESS_SECONDS = 0.5
_OURS = {"messages", "model", "stream", "n", "tools", "tool_choice"}
"""Keys of a request that the evaluation decides."""

_DISTRIBUTIONS = ("ms4-train", "httpx")


class EndpointClient:
    """Satisfies ``Client``.

    Args:
        section: servers and how to treat them.
        backoff: waits between attempts; default: as documented there.
        outage_seconds: without any server, after which the run stops.

    Raises:
        EvaluationError: an address, a key or ``extra_body`` cannot be used. Nothing is asked yet.
    """

    def __init__(self, section: EndpointSection, *, backoff: Backoff | None = None, outage_seconds: float = OUTAGE_SECONDS) -> None:
        check_extra_body(section)
        self._section = section
        self._targets = make_targets(section)
        self._backoff = backoff
        self._outage_seconds = outage_seconds
        self.most_in_flight = 0

    def identity(self) -> Mapping[str, Any]:
        """Name of the model, kind of server and the further keys of each request; asks the servers where the section leaves one open.

        Addresses are left out: the same model behind another address is the same model.

        Raises:
            EvaluationError: no server can be reached.
        """
        if not all(target.model and target.kind for target in self._targets):
            with _own_loop() as runner:
                runner.run(self._reach())
        return identity_of(self._section, self._targets)

    def versions(self) -> Mapping[str, str]:
        """Versions of Python and of what asks; those of the servers are theirs to tell."""
        return {"python": platform.python_version(), **{name: version(name) for name in _DISTRIBUTIONS}}

    def answer(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Answer all requests, in an event loop of this thread. Ctrl-C cancels what is in flight.

        Raises:
            EvaluationError: no server can be reached any more, or one refuses everything.
        """
        with _own_loop() as runner:
            runner.run(self._answer_all(requests, on_finish, on_progress))

    def close(self) -> None:
        """Nothing is held between calls."""

    async def _reach(self) -> None:
        async with self._pool():
            pass

    async def _answer_all(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        waiting = iter(requests)
        async with self._pool() as pool:

            async def work() -> None:
                # Every worker takes the next request when it is free, so prompts are built for those in flight only.
                for request in waiting:
                    on_finish(request, await pool.ask(request))

            async def tell() -> None:
                while True:
                    await asyncio.sleep(PROGRESS_SECONDS)
                    on_progress(pool.generated_tokens)

            teller = asyncio.create_task(tell())
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._section.concurrency, len(requests))):
                        group.create_task(work())
            except BaseExceptionGroup as failures:
                # What one worker could not go on with is the reason; the others were cancelled for it.
                raise failures.exceptions[0] from None
            finally:
                teller.cancel()
                self.most_in_flight = max(self.most_in_flight, pool.most_in_flight)
            on_progress(pool.generated_tokens)

    @contextlib.asynccontextmanager
    async def _pool(self) -> AsyncIterator[EndpointPool]:
        async with open_pool(self._section, self._targets, self._backoff, self._outage_seconds) as pool:
            yield pool


@contextlib.asynccontextmanager
async def open_pool(
    section: EndpointSection, targets: Sequence[Target], backoff: Backoff | None, outage_seconds: float
) -> AsyncIterator[EndpointPool]:
    """A pool that has reached its servers, closed at the end."""
    pool = EndpointPool(section, targets, backoff=backoff, outage_seconds=outage_seconds)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


def identity_of(section: EndpointSection, targets: Sequence[Target]) -> dict[str, Any]:
    """What identifies the model behind servers that were reached."""
    models = [target.model for target in targets if target.model]
    kinds = {target.kind.name: target.kind for target in targets if target.kind}
    plain = {name: dict(kind.plain_sampling) for name, kind in sorted(kinds.items()) if kind.plain_sampling}
    identity = {"endpoint_model": models[0], "kind": "+".join(sorted(kinds)), "extra_body": dict(section.extra_body)}
    # What we send of ourselves to keep a kind of server from its own sampling shapes answers too.
    return identity | ({"plain_sampling": plain} if plain else {})


def check_extra_body(section: EndpointSection) -> None:
    """Refuse keys of ``extra_body`` that would change what is asked behind the evaluation's back, and values that JSON has not.

    Raises:
        EvaluationError: names the key.
    """
    place = f"{section_name(section)}.extra_body"
    for name in section.extra_body:
        if name in _OURS:
            raise EvaluationError("is set by the evaluation.", key=f"{place}.{name}", fix="leave it out.")
    try:
        json.dumps(section.extra_body, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise EvaluationError(f"cannot be sent as JSON: {error}.", key=place, fix="use JSON values.") from None


@contextlib.contextmanager
def _own_loop() -> Iterator[asyncio.Runner]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield runner
        return
    raise EvaluationError(
        "an event loop runs in this thread already.", fix="call it from a thread of its own, as with asyncio.to_thread in a notebook."
    )
