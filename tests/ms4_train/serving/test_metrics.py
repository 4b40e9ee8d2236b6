"""Metrics, read back with Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ms4_train.inference.request import Completion, EngineStats
from ms4_train.serving.admission import Admission
from ms4_train.serving.metrics import ServerMetrics


def samples(metrics: ServerMetrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(sample.name, ",".join(sorted(sample.labels.values()))): sample.value for family in families for sample in family.samples}


def test_counters_and_gauges_are_the_engines() -> None:
    stats = EngineStats(
        prompt_tokens=10, cached_tokens=4, generated_tokens=7, preemptions=2, finished={"stop": 3, "length": 1}, running=5, waiting=6,
        blocks_used=2, blocks_cached=1, blocks_total=8, bytes_per_block=100,
    )  # fmt: skip
    admission = Admission(8, 100)
    admission.enter().hold(42)
    found = samples(ServerMetrics(lambda: stats, admission))
    expected = {
        "ms4_prompt_tokens_total": 10, "ms4_generation_tokens_total": 7, "ms4_prefix_cache_queries_total": 10,
        "ms4_prefix_cache_hits_total": 4, "ms4_num_preemptions_total": 2, "ms4_num_requests_running": 5, "ms4_num_requests_waiting": 6,
        "ms4_kv_cache_usage_perc": 0.25, "ms4_kv_cache_bytes": 300, "ms4_held_bytes": 42, "ms4_admitted_answers": 1,
    }  # fmt: skip
    assert {name: found[name, ""] for name in expected} == expected
    assert (found["ms4_request_success_total", "stop"], found["ms4_request_success_total", "length"]) == (3, 1)


def test_times_of_an_answer() -> None:
    metrics = ServerMetrics(EngineStats, Admission(1, 1))
    metrics.observe_answer(Completion("r", [1] * 5, "stop", None, 3, 5, seconds=2.0, queue_seconds=1.0, first_token_seconds=1.5))
    found = samples(metrics)
    assert found["ms4_request_queue_time_seconds_sum", ""] == 1.0
    assert found["ms4_e2e_request_latency_seconds_sum", ""] == 3.0
    assert found["ms4_time_to_first_token_seconds_sum", ""] == 1.5
    assert found["ms4_request_time_per_output_token_seconds_sum", ""] == (3.0 - 1.5) / 4


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    metrics = ServerMetrics(EngineStats, Admission(1, 1))
    metrics.observe_answer(Completion("r", [1], "stop", None, 3, 1, seconds=2.0))
    assert samples(metrics)["ms4_request_time_per_output_token_seconds_count", ""] == 0


def test_requests_by_outcome() -> None:
    metrics = ServerMetrics(EngineStats, Admission(1, 1))
    for outcome in ("stop", "stop", "overloaded"):
        metrics.observe_request("chat", 200 if outcome == "stop" else 429, outcome)
    found = samples(metrics)
    assert (found["ms4_requests_total", "200,chat,stop"], found["ms4_requests_total", "429,chat,overloaded"]) == (2, 1)
