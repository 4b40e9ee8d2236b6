"""Answers between the engine's thread and the event loop, with a real engine: all of them come, and giving up frees the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.served import tiny_engine

from ms4_train.errors import EngineError
from ms4_train.inference import Engine, EngineThread, FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from ms4_train.inference.run import Run
from ms4_train.serving.answering import Answering
from ms4_train.serving.failures import ApiError


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(max_batch_size=4)


@pytest.fixture
def thread(engine: Engine) -> Iterator[EngineThread]:
    with EngineThread(engine) as running:
        yield running


def request(name: str, count: int = 1, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(name, (1, 50, 60, 70), SamplingParams(**{"max_tokens": 6, "ignore_eos": True, **sampling}), n=count)


def play(thread: EngineThread, requests: list[GenerationRequest], scene: Callable[[Answering], Awaitable[Any]], **options: Any) -> Any:
    """Run ``scene`` with submitted requests, then wait for the engine to let go of them."""

    async def whole() -> Any:
        ended = asyncio.Event()
        answering = Answering(thread, requests, **{"is_streamed": True, "buffered_events": 1000, "on_end": ended.set, **options})
        with ThreadPoolExecutor(1) as pool:
            await answering.submit(pool)
            found = await scene(answering)
        await asyncio.wait_for(ended.wait(), 30)
        assert thread.num_unfinished == 0
        return found

    return asyncio.run(whole())


def test_completions_are_the_engines_in_order(thread: EngineThread) -> None:
    requests = [request("b", 2, temperature=1.0, seed=1), request("a", 1)]
    found = play(thread, requests, lambda answering: answering.completions(), is_streamed=False)
    expected = tiny_engine().generate(requests)
    assert [(each.request_id, each.index, each.token_ids) for each in found] == [
        (each.request_id, each.index, each.token_ids) for each in expected
    ]


def test_events_come_as_they_are_made(thread: EngineThread) -> None:
    async def scene(answering: Answering) -> list[Any]:
        events: list[Any] = []
        while not any(isinstance(event, FinishEvent) for event in events):
            events += await answering.next_events(5)
        return events

    *tokens, end = play(thread, [request("r")], scene)
    assert all(isinstance(event, TokenEvent) for event in tokens)
    assert [token for event in tokens for token in event.token_ids] == end.completion.token_ids


def test_giving_up_frees_the_engine(thread: EngineThread) -> None:
    async def scene(answering: Answering) -> Any:
        await answering.next_events(5)
        answering.stop("late")
        answering.stop("gone")
        assert await answering.next_events(5) == []
        return answering.stopped

    before = thread.stats.generated_tokens
    assert play(thread, [request("long", 3, max_tokens=900)], scene) == "late"
    assert thread.stats.generated_tokens - before < 900


def test_a_stream_that_nobody_takes_is_given_up(thread: EngineThread) -> None:
    async def scene(answering: Answering) -> Any:
        while answering.stopped is None:
            await asyncio.sleep(0.01)
        return answering.stopped

    assert play(thread, [request("long", max_tokens=900)], scene, buffered_events=20) == "slow"


def test_one_bad_request_ends_the_others(thread: EngineThread) -> None:
    with pytest.raises(EngineError, match="max_context"):
        play(thread, [request("good", max_tokens=900), request("bad", max_tokens=5000)], lambda answering: answering.completions())
    for _ in range(1000):
        if thread.num_unfinished == 0:
            return
        thread.call(lambda engine: None)
    raise AssertionError("the good one is still there")


def test_a_step_that_fails_ends_every_answer(thread: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.step

    def fail(run: Run) -> Any:
        monkeypatch.setattr(Run, "step", real)
        raise MemoryError

    monkeypatch.setattr(Run, "step", fail)
    found = play(thread, [request("r", 3)], lambda answering: answering.completions())
    assert [each.finish_reason for each in found] == ["error"] * 3


async def take_for_ever(answering: Answering) -> None:
    while True:
        await answering.next_events(0.01)


def test_a_dead_engine_is_noticed(thread: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(answering: Answering) -> None:
        monkeypatch.setattr(thread, "error", RuntimeError("dead"))
        with pytest.raises(ApiError) as caught:
            await take_for_ever(answering)
        assert caught.value.status == 503
        monkeypatch.setattr(thread, "error", None)
        answering.stop("gone")

    play(thread, [request("r", max_tokens=900)], scene, is_streamed=False)
