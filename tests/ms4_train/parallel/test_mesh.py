"""Places of ranks, collectives, and environments that do not fit."""

import pytest
import torch

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh, init_mesh


def test_one_process_needs_no_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    mesh = init_mesh(ParallelSection())
    assert (mesh.rank, mesh.world_size, mesh.is_main) == (0, 1, True)
    assert mesh.expert_range(6) == (0, 6)
    assert mesh.all_reduce_sum(2.5) == 2.5
    assert mesh.all_gather_json({"a": [1, "é"]}) == [{"a": [1, "é"]}]
    mesh.barrier()
    mesh.close()


def test_places_of_ranks():
    meshes = [Mesh(rank, 8, expert_parallel_size=4, expert_parallel_rank=rank % 4) for rank in range(8)]
    assert [mesh.expert_range(128) for mesh in meshes[:4]] == [(0, 32), (32, 64), (64, 96), (96, 128)]
    assert [mesh.expert_range(128) for mesh in meshes[4:]] == [mesh.expert_range(128) for mesh in meshes[:4]]
    assert [mesh.expert_data_parallel_rank for mesh in meshes] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {mesh.expert_data_parallel_size for mesh in meshes} == {2}


def test_experts_that_cannot_be_divided_are_refused_with_sizes_that_can():
    with pytest.raises(
        ParallelError, match=r"parallel.expert_parallel_size: 6 experts cannot be divided over 4 ranks\. Fix: use one of 1, 2\."
    ):
        Mesh(0, 4, expert_parallel_size=4).expert_range(6)


@pytest.mark.parametrize("world_size", ["1", "3"])
def test_processes_that_do_not_fit_expert_parallelism_are_refused(monkeypatch, world_size):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ParallelError, match=r"parallel.expert_parallel_size: .*groups of 2.*--nproc-per-node 2"):
        init_mesh(ParallelSection(expert_parallel_size=2))


@pytest.mark.parametrize(
    ("environment", "key"),
    [({"WORLD_SIZE": "two"}, "WORLD_SIZE"), ({"WORLD_SIZE": "2"}, "RANK"), ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK")],
)
def test_a_broken_environment_is_named(monkeypatch, environment, key):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParallelError, match=f"^{key}: .*torchrun"):
        init_mesh(ParallelSection())


def test_collectives_on_two_ranks(light_report):
    """Each rank r reduced r + 0.5 and [r, 1], and gathered texts of different lengths."""
    for rank, report in enumerate(light_report):
        mesh = report["mesh"]
        assert mesh["rank"] == rank
        assert mesh["float_sum"] == 2.0
        assert mesh["tensor_sum"] == [1, 2]
        assert mesh["own_tensor_after"] == [rank, 1]
        assert mesh["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ü" * 1000}]
        assert mesh["expert_parallel_ranks"] == [0, 1]
        assert mesh["expert_data_parallel_ranks"] == [rank]


def test_sum_keeps_what_fp32_would_lose(light_report):
    """16777216 + 1 is not an fp32 number: token counts of a long run must still add up."""
    assert torch.tensor(16777216.0) + torch.tensor(1.0) == 16777216.0
    assert light_report[0]["mesh"]["large_sum"] == 16777217.0
