"""The same endpoint for callers that ask one thing at a time from several threads, as judges do.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_background.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.balance import OUTAGE_SECONDS
from ms4_evals.clients.endpoint.client import check_extra_body, identity_of, open_pool
from ms4_evals.clients.endpoint.pool import EndpointPool
from ms4_evals.clients.endpoint.retries import Backoff
from ms4_evals.clients.endpoint.targets import make_targets
from ms4_train.config.endpoint import EndpointSection
from ms4_train.errors import EvaluationError


class BackgroundEndpoint:
    """An endpoint on a thread of its own. A context manager; entering it reaches the servers.

    Args:
        section: servers and how to treat them.
        backoff: waits between attempts.
        outage_seconds: without any server, after which every question raises.

    Raises:
        EvaluationError: an address, a key or ``extra_body`` cannot be used.
    """

    def __init__(self, section: EndpointSection, *, backoff: Backoff | None = None, outage_seconds: float = OUTAGE_SECONDS) -> None:
        check_extra_body(section)
        self._section = section
        self._targets = make_targets(section)
        self._backoff = backoff
        self._outage_seconds = outage_seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready: Future[tuple[asyncio.AbstractEventLoop, EndpointPool, asyncio.Event]] = Future()
        self._is_closing = False

    def __enter__(self) -> Self:
        self._ready, self._is_closing = Future(), False
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def identity(self) -> Mapping[str, Any]:
        """As of ``EndpointClient``; only while entered."""
        with self._lock:
            self._running()
        return identity_of(self._section, self._targets)

    def ask(self, request: SampleRequest) -> SampleAnswer:
        """The answer, or an answer with ``error``. From any thread; waits.

        Raises:
            EvaluationError: nothing more can be answered, or the endpoint was closed.
        """
        # Under the lock, so that nothing is handed to a loop that has stopped taking.
        with self._lock:
            loop, pool, _ = self._running()
            future = asyncio.run_coroutine_threadsafe(pool.ask(request), loop)
        try:
            return future.result()
        except CancelledError:
            raise EvaluationError("the endpoint was closed while it was asked.", fix="keep it open until the last answer.") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what is in flight and end the thread; may be called twice."""
        thread = self._thread
        if thread is None:
            return
        with self._lock:
            self._is_closing = True
            if self._ready.done() and self._ready.exception() is None:
                loop, _, stop = self._ready.result()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(stop.set)
        thread.join()
        self._thread = None

    def _running(self) -> tuple[asyncio.AbstractEventLoop, EndpointPool, asyncio.Event]:
        if self._thread is None or self._is_closing:
            raise EvaluationError("the endpoint is not open.", fix="use it as a context manager.")
        return self._ready.result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with open_pool(self._section, self._targets, self._backoff, self._outage_seconds) as pool:
            with self._lock:
                self._ready.set_result((asyncio.get_running_loop(), pool, stop))
                if self._is_closing:
                    return
            await stop.wait()
            asked = asyncio.all_tasks() - {asyncio.current_task()}
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
