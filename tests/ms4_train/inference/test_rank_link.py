"""Messages between two ranks, of every size around a frame's; and what a rank hears when another is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.distributed import run_ranks

from ms4_train.inference.rank_link import ORDER_FRAME, REPLY_FRAME, _frame, _opened, lost


@pytest.mark.parametrize("size", [0, 1, 503, 504, 505, 5000])
def test_a_frame_says_how_much_follows(size):
    data = bytes(index % 251 for index in range(size))
    start, missing = _opened(_frame(data, ORDER_FRAME))
    assert start == data[: ORDER_FRAME - 8]
    assert missing == max(0, size - (ORDER_FRAME - 8))
    assert ORDER_FRAME < REPLY_FRAME


def test_only_lost_connections_are_taken_for_a_lost_rank():
    assert lost(RuntimeError("expected scalar type Float")) is None
    error = lost(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer. This is typically caused by a bug"))
    assert error is not None
    assert error.exit_code == 76
    assert "typically" not in str(error)


@pytest.mark.slow
def test_messages_of_every_size_arrive_and_a_dead_rank_is_noticed(tmp_path):
    run_ranks(Path(__file__).parent / "link_worker.py", str(tmp_path), ranks=3, timeout=120, check=False)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["replies"] is True
    assert found[1]["orders"] == found[0]["orders"]
    assert found[0]["lost"].startswith("RankLostError")
    assert found[0]["after"].startswith("RankLostError: the ranks that generate together have lost each other")
