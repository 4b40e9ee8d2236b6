"""Whole answers from an engine that computes steps: ``generate`` and ``stream``, the same for one process and for the ranks of a mesh.

Exercise it: ``pytest tests/ms4_train/inference/test_calls.py``; most of it is tested through the engine, in ``test_engine.py`` beside it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, Self

from ms4_train.errors import EngineError
from ms4_train.inference.request import Completion, EngineStats, Event, FinishEvent, GenerationRequest, Progress
from ms4_train.inference.token_stream import TokenStream


class StepEngine(ABC):
    """An engine that is opened, given requests, stepped and closed; subclasses say how.

    Attributes:
        max_batch_size: most answers computed at once.
    """

    max_batch_size: int
    _is_busy = False

    @property
    @abstractmethod
    def stats(self) -> EngineStats:
        """Counters since the engine was made, gauges of now; a copy."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it holds a cache and the model's weights must stay as they are."""

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether any answer is unfinished."""

    @abstractmethod
    def open(self, *, needed_tokens: int | None = None) -> None:
        """Take the memory of the cache and prepare the model; ``with engine:`` does it, and closes.

        Args:
            needed_tokens: that all requests of a batch can come to, prompts included; default: the most that they can be.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop unfinished answers and all that was cached, and give the model back as it was."""

    @abstractmethod
    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that cannot be served; computes nothing, from any thread.

        Raises:
            EngineError: see there.
        """

    @abstractmethod
    def submit(self, request: GenerationRequest) -> None:
        """Queue a request of an open engine; its answers come as events of :meth:`step`.

        Raises:
            EngineError: it cannot be served, or its id is in use.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Let a request's unfinished answers end with the next step, as "cancelled"; an unknown id is no error, it may just have ended."""

    @abstractmethod
    def step(self) -> list[Event]:
        """Compute one step; returns what has become certain. What goes wrong with one answer ends that answer as "error"."""

    @abstractmethod
    def _open(self, needed_tokens: int, longest: int | None = None) -> None: ...

    @abstractmethod
    def _drop_all(self) -> None:
        """Forget unfinished answers, without events."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        *,
        on_finish: Callable[[Completion], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Completion]:
        """Answers every request; opens the engine for the time of the call if it is closed.

        Args:
            requests: in any number; those that do not fit the batch wait for a free place.
            on_finish: called with each completion as soon as it is there.
            on_progress: called after each step.

        Returns:
            Completions in the order of the requests, a request's n answers in the order of their indices.

        Raises:
            EngineError: a request that cannot be served (checked before anything is computed), a request id given twice, logits that are
                not finite, or a call while another one is running.
        """
        wanted = list(requests)
        self._check_all(wanted)
        places = {request.request_id: number for number, request in enumerate(wanted)}
        found: dict[tuple[int, int], Completion] = {}
        with _Call(self, wanted):
            before, began = self.stats, time.perf_counter()
            while self.has_work:
                for event in self.step():
                    if isinstance(event, FinishEvent):
                        completion = event.completion
                        if completion.error is not None:
                            raise completion.error
                        found[places[completion.request_id], completion.index] = completion
                        if on_finish is not None:
                            on_finish(completion)
                if on_progress is not None:
                    on_progress(_progress(self.stats, before, len(found), began))
        return [found[key] for key in sorted(found)]

    def stream(self, request: GenerationRequest) -> TokenStream:
        """Answers one request token by token.

        Tokens that may turn out to begin a stop text are held back until that is known. The engine is busy until the stream has ended or
        was closed.

        Raises:
            EngineError: as ``generate``, or n above 1; a bad request is refused here, not at the first token.
        """
        if request.n != 1:
            raise EngineError(f"{request.n} answers cannot be streamed as one.", key="n", fix="use generate, or submit and step.")
        self._check_all([request])
        return TokenStream(lambda: _Call(self, [request]))

    def _check_all(self, requests: list[GenerationRequest]) -> None:
        seen: set[str] = set()
        for request in requests:
            if request.request_id in seen:
                raise same_id(request.request_id)
            seen.add(request.request_id)
            self.check(request)


def same_id(request_id: str) -> EngineError:
    """The error of a request id that is in use."""
    return EngineError("this request id is given twice.", key=request_id, fix="give every request its own id.")


class _Call:
    """A call of the engine: alone on it, on one that is opened for the call if need be; leaves no unfinished answer behind."""

    def __init__(self, engine: StepEngine, requests: list[GenerationRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._opens = not engine.is_open

    def __enter__(self) -> StepEngine:
        engine = self._engine
        if engine._is_busy or engine.has_work:
            raise EngineError("this engine is generating already.", fix="finish or close the open stream first.")
        if self._opens:
            lengths = [len(request.prompt_ids) + request.sampling.max_tokens for request in self._requests] or [2]
            needed = sum(length * request.n for length, request in zip(lengths, self._requests, strict=False))
            engine._open(needed, max(lengths))
        engine._is_busy = True
        try:
            for request in self._requests:
                engine.submit(request)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return engine

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> Literal[False]:
        engine = self._engine
        engine._is_busy = False
        if self._opens:
            engine.close()
        elif engine.is_open:
            engine._drop_all()
        return False


def _progress(stats: EngineStats, before: EngineStats, finished: int, began: float) -> Progress:
    return Progress(
        finished=finished,
        running=stats.running,
        waiting=stats.waiting,
        generated_tokens=stats.generated_tokens - before.generated_tokens,
        prompt_tokens=stats.prompt_tokens - before.prompt_tokens,
        steps=stats.steps - before.steps,
        cache_bytes=stats.blocks_used * stats.bytes_per_block,
        seconds=time.perf_counter() - began,
    )
