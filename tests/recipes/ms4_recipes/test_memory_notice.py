"""What a run says of its memory before it reads the weights, and when it warns."""

from __future__ import annotations

import pytest
import torch
from support.sft_files import sft_run, write_files

from ms4_recipes import memory_notice as notice
from ms4_recipes import sft
from ms4_train.errors import AdapterError, ParallelError
from ms4_train.parallel import Mesh


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("notice"), rows=30)


def lines(run, mesh=None, *, whole=True):
    return list(notice.memory_notice(run, mesh or Mesh(), images=False, whole=whole))


def test_the_table_is_for_a_dry_run_and_silence_where_all_is_well(files):
    shown = lines(sft_run(files))
    assert shown[0] == "memory, in MB:"
    assert len(shown) == 13
    assert not any("host" in line or "CUDA" in line for line in shown)  # on a CPU, the host is the device
    assert lines(sft_run(files), whole=False) == []


def test_a_machine_with_less_is_warned_of(files, monkeypatch):
    monkeypatch.setattr(notice.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 50_000)
    (warning,) = lines(sft_run(files), whole=False)
    assert warning.startswith("warning: each process of this machine has 205 MB, about ")


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """As on a machine with eight GPUs that are large enough, and 30 GB of memory; 4 GB of it are one rank's program."""
    monkeypatch.setattr(notice, "device_bytes", lambda device: 10**12)
    monkeypatch.setattr(notice.torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(notice, "CONTROL_GROUPS", notice.Path("/there/is/none"))
    monkeypatch.setattr(notice.os, "sysconf", lambda name: 1000 if name == "SC_PAGE_SIZE" else 30_000_000)
    return Mesh(world_size=16, expert_parallel_size=1, device=torch.device("cuda", 0))


@pytest.mark.parametrize(("local", "ranks"), [("8", 8), ("", 8), ("x", 8), ("7", 7), ("64", 16)])
def test_a_host_with_less_than_its_ranks_need_is_warned_of(files, monkeypatch, beside_a_gpu, local, ranks):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    run = sft_run(files, parallel={"data_parallel_size": 16, "zero_stage": 2})
    if ranks * 4e9 < 30e9:  # the control: one rank fewer fits
        assert lines(run, beside_a_gpu, whole=False) == []
        return
    (warning,) = lines(run, beside_a_gpu, whole=False)
    assert warning.startswith("warning: this machine has 30.0 GB of memory, about ")
    assert f"({ranks} ranks, 4.0" in warning


def test_a_limit_of_the_control_group_counts_as_the_memory(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("4:memory:/old\n0::/slurm/job_7/step_0\n")
    job = tmp_path / "groups" / "slurm" / "job_7"
    (job / "step_0").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("1\n")  # beside the control groups: nobody's
    monkeypatch.setattr(notice, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(notice, "OWN_CONTROL_GROUPS", own)
    whole = notice.machine_bytes()
    (job / "step_0" / "memory.max").write_text("max\n")
    assert notice.machine_bytes() == whole
    (job / "memory.max").write_text("123456789\n")
    assert notice.machine_bytes() == 123_456_789
    (tmp_path / "groups" / "memory.max").write_text("1000\n")
    assert notice.machine_bytes() == 1000
    own.unlink()
    (tmp_path / "groups" / "memory.max").write_text("max\n")
    assert notice.machine_bytes() == whole


def test_ranks_share_the_machine(monkeypatch):
    alone = notice.device_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert notice.device_bytes(torch.device("cpu")) == alone // 4


def test_an_adapter_to_go_on_with_is_not_planned(files):
    assert lines(sft_run(files, adapter={"init_from": "somewhere"})) == []


def test_a_target_without_a_match_is_found_before_the_weights_are_read(files):
    with pytest.raises(AdapterError, match="no_such"):
        lines(sft_run(files, adapter={"target_modules": ["no_such"]}))


def test_a_dry_run_of_one_process_stands_for_all(files, capsys):
    run = sft_run(files, parallel={"data_parallel_size": 16, "expert_parallel_size": 4, "zero_stage": 3})
    sft.run(run, dry_run=True)
    printed = capsys.readouterr().out
    assert "memory of each of 16 ranks, in MB:" in printed
    assert "16 packed rows per step" in printed


@pytest.mark.parametrize(
    ("parallel", "key", "said"),
    [
        (
            {"data_parallel_size": 16, "expert_parallel_size": 16},
            "expert_parallel_size",
            "has 8 experts, and there are 16 processes.*use 8",
        ),
        ({"data_parallel_size": 16, "expert_parallel_size": 3}, "expert_parallel_size", "use 2 or 4"),
        ({"offload_optimizer": "cpu"}, "offload_optimizer", "one process trains without DeepSpeed"),
    ],
)
def test_processes_that_do_not_fit_are_refused_before_rows_are_read(files, parallel, key, said):
    run = sft_run(files, parallel=parallel, data={"train": [{"path": "there/is/none.jsonl"}]})
    with pytest.raises(ParallelError, match=f"^parallel.{key}: .*{said}"):
        sft.run(run, dry_run=True)
