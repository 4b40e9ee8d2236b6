"""The output folder is held by one run and seen by all ranks that save there. Ranks are threads here."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.rank_threads import on_threads
from support.sft_files import sft_run

from ms4_recipes.output_folder import output_folder
from ms4_train.checkpoint import FolderLock
from ms4_train.errors import CheckpointError, MS4Error, ParallelError
from ms4_train.parallel import Mesh, shared_folder

SAVING = {"training": {"save_strategy": "steps"}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shared_folder, "PAUSES", (0.0, 0.05))


def entered(*configs):
    """What comes of entering on each rank: whether a second run could, or what is raised."""

    def work(mesh):
        with output_folder(configs[mesh.rank], mesh):
            mesh.all_gather_json("all are in")
            try:
                FolderLock(Path(configs[0].output_dir)).release()
            except CheckpointError:
                return "held"
            finally:
                mesh.all_gather_json("none has left")

    return on_threads(work, len(configs))


def test_the_folder_is_made_held_and_let_go(tmp_path):
    run = sft_run(tmp_path, "a/out", **SAVING)
    assert entered(run, run) == ["held", "held"]
    FolderLock(tmp_path / "a" / "out").release()
    assert [path.name for path in (tmp_path / "a" / "out").iterdir()] == [".lock"]


def test_a_folder_of_another_run_is_refused_on_all_ranks(tmp_path):
    run = sft_run(tmp_path, **SAVING)
    with output_folder(run, Mesh()):
        main, other = entered(run, run)
    assert isinstance(main, CheckpointError)
    assert str(other) == f"rank 0 has stopped: {main}"
    assert isinstance(other, MS4Error)
    assert main.on_all_ranks
    assert other.on_all_ranks
    assert entered(run, run) == ["held", "held"]


def test_ranks_that_save_must_see_one_folder(tmp_path):
    raised = entered(sft_run(tmp_path, "a", **SAVING), sft_run(tmp_path, "b", **SAVING))
    assert all(isinstance(error, ParallelError) and error.on_all_ranks and error.key == "output_dir" for error in raised), raised
    FolderLock(tmp_path / "a").release()


def test_control_without_run_state_only_the_main_rank_needs_it(tmp_path):
    assert entered(sft_run(tmp_path, "a"), sft_run(tmp_path, "b")) == ["held", "held"]
    assert not (tmp_path / "b").exists()
