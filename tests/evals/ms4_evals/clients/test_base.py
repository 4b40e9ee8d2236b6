"""Requests name themselves uniquely."""

import dataclasses

from ms4_evals.clients.base import SampleRequest


def test_request_ids_differ_wherever_requests_do():
    request = SampleRequest("aime_2025/01", "high", 0, (), 0.7, 1.0, 64, 1)
    others = [
        dataclasses.replace(request, problem_id="aime_2025/02"),
        dataclasses.replace(request, mode="none"),
        dataclasses.replace(request, sample_index=1),
    ]
    assert len({other.request_id for other in (request, *others)}) == 4
