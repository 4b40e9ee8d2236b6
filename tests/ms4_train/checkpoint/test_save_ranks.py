"""Run state of two gloo ranks: who writes what, when it counts, and what one rank's failure means to the other."""

import json
from pathlib import Path

import pytest
import torch
from support.distributed import run_ranks
from support.run_state import assert_same_state, exported, small_engine, train_small

from ms4_train.checkpoint import find_saved_run
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.parallel import Mesh

RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ranks")
    run_ranks(Path(__file__).with_name("ranks_worker.py"), str(made), ranks=RANKS)
    return made


@pytest.fixture(scope="module")
def reports(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_a_checkpoint_counts_when_the_last_rank_has_written(reports):
    for report in reports:
        saved = report["saved"]
        assert saved["while writing"] == [".tmp-step-000002"]
        assert saved["after"] == ["step-000002"]
        assert saved["at the end"] == ["step-000002", "step-000003"]


def test_every_rank_writes_its_part_and_reads_it_back(reports):
    for report in reports:
        parts = [f"rank-{rank:05d}{end}" for rank in range(RANKS) for end in ("-000.safetensors", ".json")]
        assert report["saved"]["files"] == ["MANIFEST.json", *parts, "state.json"]
        assert report["saved"]["same"]
        assert report["saved"]["differs"]


def test_one_process_goes_on_from_two_ranks(folder):
    """Both ranks saw the same rows, so the sum of their gradients is twice that of one; the state itself is compared, not its path."""
    target = folder / "saved" / "step-000002"
    assert verify_folder(target, 2) == 2
    saved = find_saved_run(folder / "saved", str(target), Mesh())
    assert (saved.world_size, saved.state["loader"]) == (2, {"row": 4})
    engine = small_engine(seed=3)
    saved.restore(engine, seed=0)
    sizes = {name: tensors["weight"].numel() for name, (tensors, step) in exported(engine).items()}
    assert sizes == {"first": 24, "second": 18, "scale": 4}
    assert {step for _, step in exported(engine).values()} == {2}
    again = small_engine(seed=4)
    saved.restore(again, seed=0)
    assert_same_state(exported(again), exported(engine))
    torch.manual_seed(0)
    first = train_small(engine, 2)
    torch.manual_seed(0)
    assert train_small(again, 2) == first


@pytest.mark.parametrize(("name", "kinds"), [("full", ["DiskFullError"] * 2), ("other", ["CheckpointError"] * 2)])
def test_a_failure_of_one_rank_is_raised_on_both(reports, name, kinds):
    assert [report["failure"][name][0] for report in reports] == kinds
    assert reports[0]["failure"][name][1].startswith("rank 1 could not save: ")
    assert not reports[1]["failure"][name][1].startswith("rank 1")
    for report in reports:
        assert report["failure"][name][2]
        assert report["failure"][f"{name} left"] == []
        assert report["failure"][f"{name} later"] == ["step-000002"]


@pytest.mark.parametrize(("name", "kind"), [("written", "DiskFullError"), ("taken", "CheckpointError")])
def test_a_failure_of_one_rank_in_a_save_that_is_waited_for_is_raised_on_both(reports, name, kind):
    for report in reports:
        found = report["failure_while_waited_for"]
        assert (found[name], found[f"{name} left"], found[f"{name} later"]) == ([kind, True], [], ["step-000002"])


def test_a_failing_commit_is_raised_on_both(reports):
    for report in reports:
        assert report["commit_failure"] == ["DiskFullError", True, []]


def test_a_rank_that_fails_alone_waits_for_nobody(reports):
    for report in reports:
        assert report["alone"] == []


def test_damage_that_one_rank_finds_is_known_to_both(reports):
    for report in reports:
        assert report["damage"] == [1, ["step-000001", "step-000002.quarantine"]]
