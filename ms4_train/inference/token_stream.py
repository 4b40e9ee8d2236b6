"""One answer, token by token. Exercise it: ``pytest tests/ms4_train/inference/test_token_stream.py``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self

from ms4_train.inference.request import Completion, Event, FinishEvent


class Stepped(Protocol):
    """What gives events step by step."""

    @property
    def has_work(self) -> bool:
        """Whether a step gives anything."""
        ...

    def step(self) -> list[Event]:
        """Compute one."""
        ...


class TokenStream(Iterator[int]):
    """The tokens of one answer as they are chosen; ``completion`` is there once they have ended. Close it to stop early."""

    def __init__(self, call: Callable[[], AbstractContextManager[Stepped]]) -> None:
        self.completion: Completion | None = None
        self._tokens = self._run(call)

    def _run(self, call: Callable[[], AbstractContextManager[Stepped]]) -> Generator[int, None, None]:
        with call() as engine:
            while engine.has_work:
                for event in engine.step():
                    if not isinstance(event, FinishEvent):
                        yield from event.token_ids
                    elif event.completion.error is not None:
                        raise event.completion.error
                    else:
                        self.completion = event.completion

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """Stops generating and frees the engine; a finished stream needs no closing."""
        self._tokens.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
