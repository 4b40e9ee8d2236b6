"""ZeRO 3 from the shares that each rank reads, against whole models that DeepSpeed itself broadcasts and partitions: equal bits.

Everything goes through the recipe's ``prepare_model``. Memory: ``test_zero3_memory.py``; what ranks read: ``test_loading_share.py``.
"""

import json
from pathlib import Path

import pytest
from support.distributed import run_ranks

from ms4_train.parallel import Mesh
from ms4_train.parallel.zero3 import sharing_of
from ms4_train.weights.reading.shares import WHOLE, Sharing

WORKER = Path(__file__).parent / "zero3_worker.py"


def assert_same(found):
    """Parameters before the first step, losses, norms, gradients of the second step, state and parameters after the last."""
    assert found["same"] == dict.fromkeys(("start", "losses", "norms", "gradients", "state", "end"), True)
    assert found["shared_learned"], "nothing was trained"
    assert found["shared_partitioned"]
    assert found["whole_shares"] == 0


def assert_read_in_shares(found):
    """Only what was not read from files, the adapter, is broadcast; without shares everything is, twice."""
    assert found["shared_broadcast"] == found["shared_bytes_held_whole"] < found["whole_bytes_held_whole"] / 2
    assert found["whole_broadcast"] == 2 * found["whole_bytes_held_whole"]


def test_shares_train_as_whole_parameters_do(zero3_report):
    """LoRA on attention and experts, the head and a norm trained whole; two steps of two micro batches."""
    for report in zero3_report:
        assert_same(report["files_brief"])
        assert_read_in_shares(report["files_brief"])
        assert report["files_brief"]["shared_shares"] == 33 + 2  # the model's, and copies of two


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ten_steps_from_shares(tmp_path, ranks):
    """On two ranks with and without expert parallelism; on four, each expert is held twice."""
    names = ["files_full", "files_lora", "files_vision"]
    if ranks == 2:
        names += ["files_full:ep1", "files_lora:ep1", "files_orthogonal", "files_offloaded", "files_pissa"]
    run_ranks(WORKER, str(tmp_path), "2", *names, ranks=ranks)
    for rank in range(ranks):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in names:
            assert_same(report[name])
            if name != "files_pissa":
                assert_read_in_shares(report[name])
        if ranks == 2:
            assert report["files_pissa"]["shared_shares"] == 0, "its start must see whole weights"
            assert report["files_full"]["shared_shares"] == report["files_full"]["shared_tensors"]


def test_who_reads_shares():
    mesh = Mesh(rank=5, world_size=8, expert_parallel_size=4, expert_parallel_rank=1)
    assert sharing_of(mesh, 3) == Sharing(5, 8, 1, 2)
    assert sharing_of(mesh, 2) == sharing_of(Mesh(), 3) == WHOLE
