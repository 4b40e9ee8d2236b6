"""An engine in a thread of its own, for callers that wait for many requests at once: the server, and rollouts beside other work.

Exercise it: ``pytest tests/ms4_train/inference/test_background.py``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from ms4_train.errors import EngineError
from ms4_train.inference.engine import Engine
from ms4_train.inference.request import Completion, EngineStats, Event, FinishEvent, GenerationRequest

T = TypeVar("T")
Listener = Callable[[Event], None]

_LOG = logging.getLogger("ms4_train")


class EngineThread:
    """Runs an engine; every method may be called from any thread.

    Args:
        engine: closed; opened by :meth:`start`, and not to be used otherwise until :meth:`stop`.

    Attributes:
        error: what ended the thread, where something did.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.error: BaseException | None = None
        self._wake = threading.Condition()
        self._orders: deque[Callable[[Engine], None]] = deque()
        self._listeners: dict[str, tuple[Listener, set[int]]] = {}  # with the indices of unfinished answers
        self._stops = False
        self._thread: threading.Thread | None = None
        self._stats = EngineStats()

    @property
    def stats(self) -> EngineStats:
        """Counters as of the end of the last step."""
        return self._stats

    @property
    def num_unfinished(self) -> int:
        """Requests that were submitted and have unfinished answers."""
        return len(self._listeners)

    def start(self) -> None:
        """Open the engine and begin.

        Raises:
            EngineError: it cannot be opened.
        """
        assert self._thread is None, "start() is called once"
        self.engine.open()
        self._stats = self.engine.stats
        self._thread = threading.Thread(target=self._work, name="ms4-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End unfinished answers as cancelled, and close the engine."""
        with self._wake:
            self._stops = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def submit(self, request: GenerationRequest, on_event: Listener) -> None:
        """Queue a request.

        Args:
            request: checked in the caller's thread.
            on_event: called in the engine's thread with each event of the request; must not block, and what it raises is logged only.

        Raises:
            EngineError: the request cannot be served, its id is in use, or the engine has stopped.
        """
        self.engine.check(request)
        with self._wake:
            self._refuse_if_stopped()
            if request.request_id in self._listeners:
                raise EngineError("this request id is given twice.", key=request.request_id, fix="give every request its own id.")
            self._listeners[request.request_id] = (on_event, set(range(request.n)))
            self._orders.append(lambda engine: self._submit(engine, request))
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Let a request's unfinished answers end as "cancelled"; an unknown id is no error."""
        with self._wake:
            self._orders.append(lambda engine: engine.cancel(request_id))
            self._wake.notify()

    def call(self, function: Callable[[Engine], T]) -> T:
        """Run a function in the engine's thread, between two steps.

        Raises:
            EngineError: the engine has stopped.
            Exception: what the function raised.
        """
        result: Future[T] = Future()

        def order(engine: Engine) -> None:
            try:
                result.set_result(function(engine))
            except Exception as error:
                result.set_exception(error)

        with self._wake:
            self._refuse_if_stopped()
            self._orders.append(order)
            self._wake.notify()
        while True:
            with contextlib.suppress(TimeoutError):
                return result.result(timeout=1.0)
            if not result.done() and (self._thread is None or not self._thread.is_alive()):
                raise EngineError("the engine has stopped.", fix="start it anew.")

    def _refuse_if_stopped(self) -> None:
        if self._stops or self.error is not None:
            why = f" ({self.error})" if self.error else ""
            raise EngineError(f"the engine has stopped{why}.", fix="start it anew.")

    def _submit(self, engine: Engine, request: GenerationRequest) -> None:
        """A request that was right when it was submitted may not be any more: its adapter was dropped meanwhile."""
        if request.request_id not in self._listeners:
            return  # ended with a step that failed
        try:
            engine.submit(request)
        except EngineError as error:
            self._end_with(request.request_id, "error", error)

    def _work(self) -> None:
        engine = self.engine
        try:
            while True:
                with self._wake:
                    while not (self._orders or self._stops or engine.has_work):
                        self._wake.wait()
                    if self._stops:
                        break
                    orders, self._orders = self._orders, deque()
                for order in orders:
                    order(engine)
                self._step(engine)
                self._stats = engine.stats
        except BaseException as error:
            _LOG.exception("the engine's thread has ended")
            self.error = error
        finally:
            self._end_all(self.error)
            engine.close()
            self._stats = engine.stats

    def _step(self, engine: Engine) -> None:
        """One step. A step that fails as a whole (no memory, say) ends the requests of the moment, not the engine."""
        if not engine.has_work:
            return
        try:
            events = engine.step()
        except Exception as error:
            _LOG.exception("a step of the engine failed")
            self._end_all(error)
            engine.close()
            engine.open()
            return
        for event in events:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        request_id = event.completion.request_id if isinstance(event, FinishEvent) else event.request_id
        with self._wake:
            entry = self._listeners.get(request_id)
            if entry is None:
                return
            if isinstance(event, FinishEvent):
                entry[1].discard(event.completion.index)
                if not entry[1]:
                    del self._listeners[request_id]
        try:
            entry[0](event)
        except Exception:
            _LOG.exception("a listener of request %s failed", request_id)

    def _end_with(self, request_id: str, reason: str, error: EngineError | None) -> None:
        """End the unfinished answers of a request that the engine does not hold (any more)."""
        with self._wake:
            entry = self._listeners.pop(request_id, None)
        if entry is None:
            return
        for index in sorted(entry[1]):
            ended = Completion(request_id, [], "error" if reason == "error" else "cancelled", None, 0, 0, 0.0, index, error=error)
            try:
                entry[0](FinishEvent(ended))
            except Exception:
                _LOG.exception("a listener of request %s failed", request_id)

    def _end_all(self, error: BaseException | None) -> None:
        """End all requests: as cancelled, or with what has gone wrong."""
        wrapped = None if error is None else EngineError(f"the step failed: {error}", fix="see the log of the server.")
        for request_id in list(self._listeners):
            self._end_with(request_id, "cancelled" if wrapped is None else "error", wrapped)
