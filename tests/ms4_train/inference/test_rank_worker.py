"""A rank obeys orders: what it replies, and that an error is a reply too."""

from __future__ import annotations

import pytest
import torch

from ms4_train.errors import EngineError
from ms4_train.inference import Engine, GenerationRequest, SamplingParams
from ms4_train.inference.messages import events_of
from ms4_train.inference.rank_worker import RankWorker
from ms4_train.inference.request import FinishEvent

REQUEST = GenerationRequest("r", (40, 41, 42), SamplingParams(max_tokens=4, ignore_eos=True))


@pytest.fixture
def worker(model, tokenizer):
    worker = RankWorker(model, tokenizer)
    settings = RankWorker.told({"max_batch_size": 2, "max_context": 32, "cache_dtype": torch.float32})
    assert settings["cache_dtype"] == "float32"
    assert worker.obey({"do": "make", "settings": settings}, b"") == {}
    assert worker.engine.cache_dtype == torch.float32
    assert worker.obey({"do": "open", "needed": 64, "longest": 32}, b"") == {}
    return worker


def step(worker, *requests, cancelled=()):
    part = RankWorker.packed_part(list(requests), list(cancelled)) if requests or cancelled else b""
    reply = RankWorker.unpacked(RankWorker.packed(worker.obey({"do": "step"}, part)))
    return events_of(reply["events"]), reply["stats"]


def test_steps_give_the_events_of_an_engine(worker, model, tokenizer):
    events, stats = step(worker, REQUEST)
    while worker.engine.has_work:
        more, stats = step(worker)
        events += more
    (end,) = [event.completion for event in events if isinstance(event, FinishEvent)]
    (expected,) = Engine(model, tokenizer, max_context=32).generate([REQUEST])
    assert end.token_ids == expected.token_ids
    assert stats["generated_tokens"] == 4


def test_a_request_that_cannot_be_served_ends_and_the_others_go_on(worker):
    long = GenerationRequest("long", (40,) * 40, n=2)
    events, _ = step(worker, long, REQUEST)
    ends = [event.completion for event in events if isinstance(event, FinishEvent)]
    assert [(end.request_id, end.index, end.finish_reason) for end in ends] == [("long", 0, "error"), ("long", 1, "error")]
    events, _ = step(worker, cancelled=["r"])
    assert [event.completion.finish_reason for event in events if isinstance(event, FinishEvent)] == ["cancelled"]


def test_errors_are_replies_and_forgotten_with_the_next_order(worker):
    reply = worker.obey({"do": "load", "name": "x", "folder": "nowhere"}, b"")
    assert reply["error"]["type"] == "AdapterError"
    assert worker.failure is not None
    assert worker.obey({"do": "undo load"}, b"") == {}, "nothing was loaded here"
    assert worker.failure is None
    assert "error" in worker.obey({"do": "open", "needed": 1, "longest": 1}, b""), "it is open already"
    assert worker.obey({"do": "close"}, b"") is None
    assert not worker.engine.is_open


def test_rank_0_keeps_the_engine_that_it_made(model, tokenizer):
    worker = RankWorker(model, tokenizer, leads=True)
    with pytest.raises(EngineError):
        worker.make({"max_batch_size": 0})
    worker.make({"max_batch_size": 3})
    engine = worker.engine
    worker.obey({"do": "make", "settings": {"max_batch_size": 5}}, b"")
    assert worker.engine is engine
