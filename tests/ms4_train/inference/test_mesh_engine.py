"""The engine on two ranks against an engine in one process: greedy and sampled tokens, counters, errors, adapters, images.

Four ranks, and ranks that are lost: ``test_mesh_engine_ranks.py``.
"""

from __future__ import annotations

import json

import pytest
from support.mesh_runs import generate_on_ranks


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return generate_on_ranks(tmp_path_factory.mktemp("two"), 2, 2, "answers", "steps", "errors")


def test_answers_are_those_of_one_process(report):
    found = report["answers"]
    assert found["answers"]
    assert found["few"], "a single request: the other rank has nothing to do"
    assert found["stream"]
    assert found["stop"] == [True, "stop"]
    assert found["distinct"] > 8, "answers that are all alike would show nothing"
    assert report["answers experts"] == 8


def test_counters_are_those_of_all_ranks(report):
    generated, expected, ends_by_length = report["answers"]["stats"]
    assert generated == expected
    assert ends_by_length
    assert report["answers"]["idle"] == [False, False, 0, 0]


def test_requests_come_and_go(report):
    found = report["steps"]
    assert found["reasons"] == ["cancelled", "cancelled", True]
    assert found["others"], "answers do not notice who else comes and goes"
    assert found["three"] == 3
    assert found["same id"].startswith("EngineError: r0: this request id is given twice")
    assert found["stats"]


def test_rank_0_hears_that_another_one_was_asked_to_stop(report):
    assert not report["steps"]["asked before"]
    assert report["steps"]["asked to stop"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("long", "EngineError: x: 200 prompt tokens"),
        ("closed", "EngineError: this engine is closed"),
        ("batch", "EngineError: max_batch_size: 0 is below 1"),
        ("native", "EngineError: runner: the compiled runner does not serve this model: experts are spread over processes"),
        ("memory", "EngineError: cache_tokens: a sequence of 160 tokens"),
        ("fails", "EngineError: on rank 1: MemoryError: no room"),
    ],
)
def test_errors_are_typed_wherever_they_happen(report, case, said):
    assert report["errors"][case].startswith(said)


def test_the_ranks_go_on_after_an_error(report):
    assert not report["errors"]["open"]
    assert report["errors"]["after"]
    assert report["errors"]["again"]


@pytest.mark.slow
def test_the_rest_on_two_ranks(tmp_path):
    """Logprobs, adapters by name and acting, images, and the same bits in deterministic mode."""
    found = generate_on_ranks(tmp_path, 2, 2, "logprobs", "adapters", "acting", "images", "deterministic")
    check_the_rest(found)
    assert found["logprobs"]["answers"]
    assert found["logprobs"]["error"] < 1e-5, "fp32, another order of sums"


def check_the_rest(found):
    adapters = found["adapters"]
    assert adapters["answers"]
    assert adapters["matters"], "an adapter that changes no answer would show nothing"
    assert adapters["plain"]
    assert adapters["taken"].startswith("AdapterError: name: there is an adapter 'wide' already")
    assert adapters["missing"].startswith("AdapterError")
    assert adapters["dropped"].startswith("EngineError: adapter: there is no adapter")
    assert found["acting"]["answers"]
    assert found["images"]["answers"]
    assert found["deterministic"] == {"times": [3, 3], "same": True}, json.dumps(found["deterministic"])
