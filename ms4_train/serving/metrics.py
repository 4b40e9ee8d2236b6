"""What ``/metrics`` tells Prometheus: latencies, tokens, cache, requests. Names are vLLM's with the prefix ``ms4_``.

Exercise it: ``pytest tests/ms4_train/serving/test_metrics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ms4_train.inference.request import Completion, EngineStats
from ms4_train.serving.admission import Admission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class ServerMetrics:
    """The metrics of one server, in a registry of its own.

    Args:
        stats: gives the engine's counters.
        admission: counts what is at work.
    """

    def __init__(self, stats: Callable[[], EngineStats], admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival at the engine to the first token.", _LATENCY)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time of an answer's tokens after the first.", _PER_TOKEN
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival at the engine to the last token.", _LATENCY)
        self._queue = self._histogram("request_queue_time_seconds", "From arrival to the start of computation.", _LATENCY)
        self._requests = Counter(
            "ms4_requests", "Requests by endpoint, HTTP status and outcome.", ["endpoint", "status", "outcome"], registry=self._registry
        )
        self._registry.register(_EngineCollector(stats, admission))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"ms4_{name}", text, buckets=buckets, registry=self._registry)

    def observe_answer(self, completion: Completion) -> None:
        """Note the times of a finished answer."""
        whole = completion.queue_seconds + completion.seconds
        self._queue.observe(completion.queue_seconds)
        self._whole.observe(whole)
        if completion.generated_tokens > 0:
            self._first_token.observe(completion.first_token_seconds)
        if completion.generated_tokens > 1:
            self._per_token.observe(max(whole - completion.first_token_seconds, 0.0) / (completion.generated_tokens - 1))

    def observe_request(self, endpoint: str, status: int, outcome: str) -> None:
        """Note the end of a request."""
        self._requests.labels(endpoint, str(status), outcome).inc()

    def text(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self._registry)


class _EngineCollector:
    """Reads the engine's counters when they are asked for."""

    def __init__(self, stats: Callable[[], EngineStats], admission: Admission) -> None:
        self._stats = stats
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """One family for each counter and gauge."""
        stats = self._stats()
        blocks = max(stats.blocks_total, 1)
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens, computed or found in the prefix cache.", stats.prompt_tokens),
            ("generation_tokens", "Generated tokens.", stats.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache.", stats.prompt_tokens),
            ("prefix_cache_hits", "Prompt tokens that were found there.", stats.cached_tokens),
            ("num_preemptions", "Answers that gave up their cache and began again.", stats.preemptions),
            ("engine_steps", "Steps of the engine.", stats.steps),
            ("forced_thoughts", "Thoughts that a budget closed.", stats.forced_thoughts),
        ):
            yield CounterMetricFamily(f"ms4_{name}", text, value=value)
        success = CounterMetricFamily("ms4_request_success", "Answers by how they ended.", labels=["finished_reason"])
        for reason, count in sorted(stats.finished.items()):
            success.add_metric([reason], count)
        yield success
        for name, text, value in (
            ("num_requests_running", "Answers being computed.", stats.running),
            ("num_requests_waiting", "Answers waiting for a place.", stats.waiting),
            ("kv_cache_usage_perc", "Share of the cache that answers hold; 1 is all.", stats.blocks_used / blocks),
            ("kv_cache_cached_perc", "Share that only the prefix cache holds.", stats.blocks_cached / blocks),
            ("kv_cache_bytes", "Bytes of the cache that answers or the prefix cache hold.", _cache_bytes(stats)),
            ("admitted_answers", "Answers at work or waiting, requests being read included.", self._admission.answers),
            ("held_bytes", "Bytes of bodies, prompts and pixels that are held.", self._admission.held_bytes),
        ):
            yield GaugeMetricFamily(f"ms4_{name}", text, value=value)


def _cache_bytes(stats: EngineStats) -> int:
    return (stats.blocks_used + stats.blocks_cached) * stats.bytes_per_block
