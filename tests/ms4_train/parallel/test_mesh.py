"""Places of ranks, collectives, and environments that do not fit."""

import socket

import pytest
import torch
from support.distributed import free_port

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
        ParallelError, match=r"parallel.expert_parallel_size: is 4, but a layer of the model has 6 experts, .* Fix: use 2\."
    ):
        Mesh(0, 4, expert_parallel_size=4).expert_range(6)


@pytest.fixture
def environment(monkeypatch):
    """Sets the launcher's variables; those that are not given are absent."""

    def put(**values):
        for name in (
            "WORLD_SIZE",
            "RANK",
            "LOCAL_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
            "SLURM_STEP_NUM_TASKS",
            "TORCHELASTIC_USE_AGENT_STORE",
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


@pytest.mark.parametrize("world_size", ["1", "3"])
def test_processes_that_do_not_fit_expert_parallelism_are_refused(environment, world_size):
    environment(WORLD_SIZE=world_size)
    with pytest.raises(ParallelError, match=r"parallel.expert_parallel_size: .*groups of 2.*--nproc-per-node 2"):
        init_mesh(ParallelSection(expert_parallel_size=2))


def test_a_rehearsal_takes_the_place_of_the_first_rank(environment):
    environment()
    section = ParallelSection(expert_parallel_size=8, data_parallel_size=16)
    mesh = init_mesh(section, rehearse=True)
    assert (mesh.rank, mesh.world_size, mesh.expert_data_parallel_size) == (0, 16, 2)
    assert mesh.expert_range(128) == (0, 16)
    mesh.close()
    with pytest.raises(ParallelError, match=r"data_parallel_size: is 16, but there is 1 process"):
        init_mesh(section)
    with pytest.raises(ParallelError, match=r"expert_parallel_size: is 6, but there are 16 processes.*use 4 or 8"):
        init_mesh(ParallelSection(expert_parallel_size=6, data_parallel_size=16), rehearse=True)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE"),
        ({"WORLD_SIZE": 2}, "RANK"),
        ({"WORLD_SIZE": 2, "RANK": 2}, "RANK"),
        ({"RANK": 1}, "WORLD_SIZE"),
        ({"WORLD_SIZE": 2, "RANK": 0}, "MASTER_ADDR"),
        ({"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        ({"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no"}, "MASTER_PORT"),
        ({"SLURM_STEP_NUM_TASKS": 8}, "SLURM_STEP_NUM_TASKS"),
    ],
)
def test_a_broken_environment_is_named(environment, values, key):
    environment(**values)
    with pytest.raises(ParallelError, match=f"^{key}: .*torchrun"):
        init_mesh(ParallelSection())


def test_a_plain_start_inside_an_allocation_is_one_process(environment):
    environment(SLURM_STEP_NUM_TASKS=1)
    assert init_mesh(ParallelSection()).world_size == 1


def test_a_port_that_is_taken_is_named(environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment(WORLD_SIZE=2, RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=taken.getsockname()[1])
        with pytest.raises(ParallelError, match=r"^MASTER_PORT: 127.0.0.1:\d+ is in use by another program. Fix: set another port"):
            init_mesh(ParallelSection(timeout_seconds=5))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_come_are_waited_for_and_named(environment, rank):
    environment(WORLD_SIZE=2, RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    with pytest.raises(ParallelError, match=r"^MASTER_ADDR: the 2 processes did not meet at 127.0.0.1:\d+ within 1 s"):
        init_mesh(ParallelSection(timeout_seconds=1))


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


def test_ranks_of_other_layouts_are_refused_before_groups_are_made(light_report):
    """Each would wait in another group, for ever. That equal ranks pass, every other report of this launch shows."""
    host = socket.gethostname()
    said = (
        f"parallel.expert_parallel_size: differs between ranks: 2 on rank 0 (host {host}), 1 on rank 1 (host {host}). Fix: start every rank"
    )
    for report in light_report:
        assert report["section"]["said"].startswith(said)
        assert report["section"]["on_all_ranks"]
        assert report["section"]["left"]
