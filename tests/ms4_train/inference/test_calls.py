"""``generate`` and ``stream`` over an engine that is made of a list of events: who is opened, closed, dropped, and when.

What they give with a model: ``test_engine.py``.
"""

from __future__ import annotations

import pytest

from ms4_train.errors import EngineError
from ms4_train.inference import Completion, EngineStats, FinishEvent, GenerationRequest, TokenEvent
from ms4_train.inference.calls import StepEngine


class Scripted(StepEngine):
    """Answers every request with token 7 and then its end; notes what it is asked to do."""

    def __init__(self) -> None:
        self.max_batch_size = 4
        self.done: list[str] = []
        self.waiting: list[GenerationRequest] = []
        self.opened = False

    @property
    def stats(self):
        return EngineStats(steps=self.done.count("step"))

    @property
    def is_open(self):
        return self.opened

    @property
    def has_work(self):
        return bool(self.waiting)

    def open(self, *, needed_tokens=None):
        self._open(needed_tokens or 0)

    def _open(self, needed_tokens, longest=None):
        self.done.append(f"open {needed_tokens} {longest}")
        self.opened = True

    def close(self):
        self.done.append("close")
        self.opened, self.waiting = False, []

    def _drop_all(self):
        self.done.append("drop")
        self.waiting = []

    def check(self, request):
        if request.request_id == "bad":
            raise EngineError("bad")

    def submit(self, request):
        if request.request_id == "late":
            raise EngineError("too late")
        self.waiting.append(request)

    def cancel(self, request_id):
        raise AssertionError

    def step(self):
        self.done.append("step")
        request = self.waiting.pop()
        ended = Completion(request.request_id, [7], "stop", None, 1, 1, 0.0)
        return [TokenEvent(request.request_id, 0, (7,)), FinishEvent(ended)]


def requests(*names):
    return [GenerationRequest(name, (1, 2)) for name in names]


def _fail(completion):
    raise ZeroDivisionError


def test_a_closed_engine_is_opened_for_what_it_gets_and_closed_again():
    engine, seen = Scripted(), []
    found = engine.generate(requests("a", "b"), on_progress=seen.append)
    assert [completion.request_id for completion in found] == ["a", "b"], "in the order of the requests, not of their ends"
    assert engine.done == ["open 516 258", "step", "step", "close"]
    assert [(step.steps, step.finished) for step in seen] == [(1, 1), (2, 2)]


def test_an_open_engine_stays_open_and_holds_nothing_afterwards():
    engine = Scripted()
    with engine, pytest.raises(ZeroDivisionError):
        engine.generate(requests("a", "b"), on_finish=_fail)
    assert engine.done == ["open 0 None", "step", "drop", "close"]


@pytest.mark.parametrize("names", [("a", "bad"), ("a", "a")])
def test_bad_requests_are_refused_before_anything_begins(names):
    engine = Scripted()
    with pytest.raises(EngineError):
        engine.generate(requests(*names))
    assert engine.done == []


def test_a_request_that_is_refused_late_leaves_nothing_behind():
    engine = Scripted()
    with pytest.raises(EngineError, match="too late"):
        engine.generate(requests("a", "late"))
    assert engine.done[-1] == "close"
    assert engine.generate(requests("a"))


def test_a_stream_keeps_the_engine_until_it_is_closed():
    engine = Scripted()
    stream = engine.stream(requests("a")[0])
    assert next(stream) == 7
    with pytest.raises(EngineError, match="generating already"):
        engine.generate(requests("b"))
    stream.close()
    assert engine.generate(requests("b"))
    with pytest.raises(EngineError, match="streamed as one"):
        engine.stream(GenerationRequest("n", (1,), n=2))
