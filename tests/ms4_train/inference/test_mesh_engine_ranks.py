"""The engine on four ranks with experts over all or over pairs of them, on ranks that have all experts, and with ranks that are lost."""

from __future__ import annotations

import pytest
from support.mesh_runs import generate_on_ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("ranks", "size", "experts"), [(4, 4, 4), (4, 2, 8), (2, 1, 16)])
def test_answers_are_those_of_one_process(tmp_path, ranks, size, experts):
    names = ["answers", "steps", "errors", "adapters", "acting", "images", "deterministic"]
    found = generate_on_ranks(tmp_path, ranks, size, *names)
    assert found["answers experts"] == experts
    for name in ("answers", "few", "stream"):
        assert found["answers"][name], name
    assert found["answers"]["stop"] == [True, "stop"]
    assert found["steps"]["others"]
    assert found["steps"]["reasons"] == ["cancelled", "cancelled", True]
    assert found["errors"]["fails"].startswith("EngineError: on rank 1: MemoryError")
    assert found["errors"]["after"]
    assert found["errors"]["again"]
    assert found["adapters"]["answers"]
    assert found["adapters"]["matters"]
    assert found["acting"]["answers"]
    assert found["images"]["answers"]
    assert found["deterministic"] == {"times": [3, 3], "same": True}


def test_an_error_of_rank_0_reaches_the_others_and_they_can_generate_again(tmp_path):
    found = generate_on_ranks(tmp_path, 2, 2, "die-0-error", "answers", check=False)
    assert found["0"]["die-0-error"][0] == "ValueError: enough"
    assert found["1"]["die-0-error"] == ["MS4Error: rank 0 has stopped: ValueError: enough", 1, True]
    assert found["0"]["answers"]["answers"]


def test_a_rank_that_dies_ends_the_others(tmp_path):
    found = generate_on_ranks(tmp_path, 2, 2, "die-1-exit", check=False)
    text, exit_code, _ = found["0"]["die-1-exit"]
    assert text.startswith("RankLostError: a rank that generates with this one has ended")
    assert exit_code == 76
    assert "1" not in found


def test_rank_0_that_ends_takes_the_others_along(tmp_path):
    found = generate_on_ranks(tmp_path, 2, 2, "die-0-exit", check=False)
    assert found["1"]["die-0-exit"] == ["MS4Error: rank 0 has stopped: SystemExit: 7", 7, True]
