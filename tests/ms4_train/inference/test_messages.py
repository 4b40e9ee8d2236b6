"""What ranks tell each other comes out as it went in: every field, floats to the bit, images of every type."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ms4_train.errors import AdapterError, EngineError, StorageError
from ms4_train.inference import (
    Completion,
    ConstraintSpec,
    EngineStats,
    FinishEvent,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
    messages,
)
from ms4_train.model import ImageBatch

SAMPLING = SamplingParams(
    temperature=0.1 + 0.2,
    top_p=0.9,
    seed=2**63 - 1,
    max_tokens=7,
    stop=("END", "\u00e9\n"),
    stop_token_ids=(3, 5),
    top_k=4,
    min_p=0.25,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.25,
    logit_bias=((7, -1.5), (9, 100.0)),
    min_tokens=2,
    ignore_eos=True,
    include_stop=True,
    logprobs=3,
    prompt_logprobs=0,
    thinking_budget=11,
    constraint=ConstraintSpec("regex", "a+", after_thinking=False),
)
LOGPROBS = TokenLogprobs(5, -0.1 - 0.2, 1, ((5, -0.3), (6, -math.inf)))


def test_every_field_of_a_request_travels():
    changed = [
        field.name for field in dataclasses.fields(SamplingParams) if getattr(SAMPLING, field.name) != getattr(SamplingParams(), field.name)
    ]
    assert changed == [field.name for field in dataclasses.fields(SamplingParams)], "a value that is the default would show nothing"
    request = GenerationRequest("r \u00fc", (1, 2, 3), SAMPLING, n=3, adapter="x", priority=-4)
    plain = GenerationRequest("plain", (9,))
    found, more = messages.unpack_requests(messages.pack_requests([request, plain], cancel=["a"]))
    assert found == [request, plain]
    assert more == {"cancel": ["a"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_travel_as_they_lie_in_memory(dtype):
    """One is a view that does not lie in a row; a request without images stands between."""
    whole = torch.randn(12, 10).to(dtype)
    first, second = ImageBatch(whole[:, ::2], ((2, 2), (4, 2))), ImageBatch(whole[:4] * 3, ((2, 2),))
    sent = [GenerationRequest("a", (1,), images=first), GenerationRequest("b", (1,)), GenerationRequest("c", (1,), images=second)]
    found, _ = messages.unpack_requests(messages.pack_requests(sent))
    assert found[1].images is None
    for ours, theirs in ((found[0].images, first), (found[2].images, second)):
        assert ours is not None
        assert ours.grids == theirs.grids
        assert ours.patches_pi.dtype == dtype
        assert torch.equal(ours.patches_pi, theirs.patches_pi)


def test_events_travel():
    error = EngineError("bad", key="r", fix="do it.")
    whole = Completion("r", [1, 2], "stop", "END", 3, 4, 0.1 + 0.2, 1, 2, 0.5, 0.7, "forced", [LOGPROBS], [None, LOGPROBS])
    failed = Completion("s", [], "error", None, 3, 0, 0.0, error=error)
    events = [TokenEvent("r", 1, (1, 2), (LOGPROBS,)), TokenEvent("r", 0, ()), FinishEvent(whole), FinishEvent(failed)]
    (value, _) = messages.unpack(messages.pack(messages.events_value(events)))
    found = messages.events_of(value)
    assert found[:3] == events[:3]
    assert isinstance(found[0], TokenEvent)
    assert isinstance(found[0].logprobs[0], TokenLogprobs)
    assert isinstance(found[3], FinishEvent)
    assert str(found[3].completion.error) == str(error)
    assert dataclasses.replace(found[3].completion, error=None) == dataclasses.replace(failed, error=None)


def test_errors_keep_their_kind_and_say_where():
    error = messages.error_of(messages.error_value(AdapterError("is gone", file="f", key="k", fix="x.")), rank=3)
    assert type(error) is AdapterError
    assert str(error) == "f: k: on rank 3: is gone Fix: x."
    assert type(messages.error_of(messages.error_value(StorageError("full")))) is EngineError
    assert str(messages.error_of(messages.error_value(MemoryError("no room")), rank=1)) == "on rank 1: MemoryError: no room"


def test_counters_are_added():
    one = EngineStats(1, 2, 3, 4, 5, {"stop": 1}, 6, 7, 8, 9, 10, 11, 12)
    two = EngineStats(10, 20, 30, 40, 4, {"stop": 2, "length": 1}, 60, 70, 80, 90, 100, 110, 12)
    total = messages.stats_of([dataclasses.asdict(one), dataclasses.asdict(two)])
    assert total == EngineStats(11, 22, 33, 44, 5, {"stop": 3, "length": 1}, 66, 77, 88, 99, 110, 121, 12)
    assert one.finished == {"stop": 1}
