"""Loading: bit-exact, across numbers of ranks, and never from a damaged folder."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.run_state import assert_same_state, exported, save_now, small_engine, train_small

from ms4_train.checkpoint.inspection import verify_checkpoint
from ms4_train.checkpoint.load import find_saved_run, restart_after
from ms4_train.checkpoint.manifest import FileSum, Manifest, canonical_json, read_manifest, write_manifest, write_synced
from ms4_train.checkpoint.part import HeldPart, write_part
from ms4_train.errors import CheckpointError, MS4Error
from ms4_train.parallel import Mesh, progress


@contextlib.contextmanager
def warned(caplog, pattern):
    """The block logs a warning that matches."""
    caplog.clear()
    try:
        yield
    finally:
        assert re.search(pattern, caplog.text), caplog.text


def save(root, engine, step, keep=3):
    return save_now(root, engine, step, {"loader": {"row": step}}, keep=keep)


def trained_root(tmp_path, steps=(1, 2)):
    """Checkpoints of these steps, and the states they were made from."""
    engine, states, root = small_engine(), {}, tmp_path / "checkpoints"
    for step in steps:
        train_small(engine, 1)
        save(root, engine, step)
        states[step] = exported(engine)
    return root, states


def test_reading_says_that_it_gets_on(tmp_path):
    """File by file and parameter by parameter: a large checkpoint takes longer to read than a rank may be silent."""
    root, _ = trained_root(tmp_path)
    heard = []
    earlier = progress.listen(lambda place: heard.append(place.phase))
    try:
        saved = find_saved_run(root, "auto", Mesh())
        assert saved is not None
        files = len(read_manifest(saved.folder).files)
        assert heard == ["load"] * files
        saved.restore(small_engine(seed=8), seed=0)
        assert heard == ["load"] * (files + len(saved.parameters))
    finally:
        progress.listen(earlier)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(tmp_path, dtype):
    torch.manual_seed(3)
    straight = small_engine(dtype=dtype)
    expected = train_small(straight, 6)
    torch.manual_seed(3)
    first = small_engine(dtype=dtype)
    losses = train_small(first, 3)
    save(tmp_path, first, 3)
    torch.manual_seed(99)
    second = small_engine(seed=8, dtype=dtype)
    saved = find_saved_run(tmp_path, "auto", Mesh())
    assert saved is not None
    assert saved.step == 3
    assert saved.state["loader"] == {"row": 3}
    saved.restore(second, seed=0)
    assert losses + train_small(second, 3) == expected
    assert_same_state(exported(second), exported(straight))


def test_without_the_random_state_the_run_differs(tmp_path):
    """Negative control: the test above can fail."""
    torch.manual_seed(3)
    straight = small_engine()
    expected = train_small(straight, 6)
    torch.manual_seed(3)
    first = small_engine()
    losses = train_small(first, 3)
    save(tmp_path, first, 3)
    second = small_engine(seed=8)
    find_saved_run(tmp_path, "auto", Mesh()).restore(second, seed=0)
    torch.manual_seed(99)
    assert losses + train_small(second, 3) != expected


def split_over_ranks(root, engine, cuts):
    """The same state as several ranks would have saved it: rank r holds the values between two cuts of every parameter."""
    folder = root / "step-000005"
    folder.mkdir(parents=True)
    files = {}
    for rank, (start, stop) in enumerate(itertools.pairwise([0, *cuts, 24])):
        part = HeldPart.copy_of(engine)
        pieces = []
        for piece in part.pieces:
            tensors = {kind: tensor[start:stop] for kind, tensor in piece.tensors.items()}
            if tensors["weight"].numel():
                pieces.append(replace(piece, start=start, tensors=tensors))
        files |= write_part(folder, replace(part, rank=rank, pieces=pieces))
    state = {"step": 5, "world_size": len(cuts) + 1, "loader": {}}
    files["state.json"] = write_synced(folder / "state.json", canonical_json(state))
    write_manifest(folder, Manifest(5, files))


@pytest.mark.parametrize("cuts", [[2], [1, 3], [3, 4, 5], [17, 23]])
def test_pieces_of_several_ranks_make_the_whole(tmp_path, cuts):
    engine = small_engine(steps=2)
    split_over_ranks(tmp_path, engine, cuts)
    saved = find_saved_run(tmp_path, "auto", Mesh())
    other = small_engine(seed=9)
    saved.restore(other, seed=0)
    assert_same_state(exported(other), exported(engine))


def test_a_rank_the_saved_run_did_not_have_gets_its_own_random_state(tmp_path):
    root, _ = trained_root(tmp_path)
    saved = find_saved_run(root, "auto", Mesh())
    engine = small_engine()
    engine.mesh = Mesh(rank=1)
    saved.restore(engine, seed=4)
    drawn = torch.rand(3)
    engine.mesh = Mesh(rank=2)
    saved.restore(engine, seed=4)
    assert not torch.equal(drawn, torch.rand(3))
    engine.mesh = Mesh(rank=1)
    saved.restore(engine, seed=4)
    assert torch.equal(drawn, torch.rand(3)), "from the seed, the step and the rank alone, so that resuming twice gives the same run"


def damaged_copies(folder, tmp_path):
    """(what was done, damaged copy) for one flipped bit at several places of each file, a cut, a deletion, and a swap."""
    for source in sorted(folder.iterdir()):
        size = source.stat().st_size
        for position in sorted({0, 1, size // 3, size // 2, size - 1}):
            yield f"{source.name} bit at {position}", lambda p, at=position: flip(p, at), source.name
        yield f"{source.name} cut", lambda p: p.write_bytes(p.read_bytes()[:-1]), source.name
        yield f"{source.name} empty", lambda p: p.write_bytes(b""), source.name
        yield f"{source.name} gone", lambda p: p.unlink(), source.name


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


def test_every_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, caplog):
    root, states = trained_root(tmp_path)
    good = tmp_path / "good"
    shutil.copytree(root / "step-000002", good)
    cases = list(damaged_copies(good, tmp_path))
    assert len(cases) > 25
    for what, damage, name in cases:
        shutil.rmtree(root / "step-000002.quarantine", ignore_errors=True)
        shutil.copytree(good, root / "step-000002", dirs_exist_ok=True)
        damage(root / "step-000002" / name)
        with warned(caplog, r"step-000002\.quarantine"):
            saved = find_saved_run(root, "auto", Mesh())
        assert saved.step == 1, what
        assert (root / "step-000002.quarantine").is_dir(), what
    engine = small_engine(seed=7)
    saved.restore(engine, seed=0)
    assert_same_state(exported(engine), states[1])


def test_an_undamaged_folder_is_not_quarantined(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    assert find_saved_run(root, "auto", Mesh()).step == 2
    assert not caplog.records


def test_files_of_another_step_are_found(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    shutil.copy(root / "step-000001" / "rank-00000-000.safetensors", root / "step-000002" / "rank-00000-000.safetensors")
    with warned(caplog, "SHA-256"):
        assert find_saved_run(root, "auto", Mesh()).step == 1


def test_a_whole_folder_under_another_step_is_found(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    shutil.copytree(root / "step-000001", root / "step-000009")
    with warned(caplog, "manifest of step 1"):
        assert find_saved_run(root, "auto", Mesh()).step == 2


def test_no_silent_start_from_zero(tmp_path, caplog):
    root, _ = trained_root(tmp_path, steps=(1,))
    flip(root / "step-000001" / "state.json", 3)
    with warned(caplog, "quarantine"), pytest.raises(CheckpointError, match="never"):
        find_saved_run(root, "auto", Mesh())
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        find_saved_run(root, "auto", Mesh())
    assert find_saved_run(root, "never", Mesh()) is None


def test_without_a_good_one_the_way_out_is_said(tmp_path, caplog):
    """Whoever mended a disk can have the checkpoint checked, and use it under its old name."""
    root, _ = trained_root(tmp_path, steps=(1,))
    aside = root / "step-000001.quarantine"
    (root / "step-000001").rename(aside)
    with pytest.raises(CheckpointError) as caught:
        find_saved_run(root, "auto", Mesh())
    for words in (f"`ms4 checkpoint verify {aside}` checks one", "renamed back", "never", "name a folder that is good"):
        assert words in (caught.value.fix or "")
    assert verify_checkpoint(aside).is_good
    aside.rename(root / "step-000001")
    assert find_saved_run(root, "auto", Mesh()).step == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize(("call", "name"), [("os.open", "MANIFEST.json"), ("pathlib.Path.open", "state.json")])
def test_a_read_that_the_system_refuses_ends_the_start_and_renames_nothing(tmp_path, monkeypatch, caplog, number, call, name):
    root, _ = trained_root(tmp_path)
    true = os.open if call == "os.open" else Path.open

    def refused(path, *arguments, **keys):
        if Path(path).name == name and "step-000002" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return true(path, *arguments, **keys)

    monkeypatch.setattr(call, refused)
    for resume in ("auto", str(root / "step-000002")):
        with pytest.raises(CheckpointError) as caught:
            find_saved_run(root, resume, Mesh())
        assert caught.value.file == str(root / "step-000002" / name)
        assert os.strerror(number) in caught.value.message
        assert "not renamed" in caught.value.message
        assert "start again, or name another checkpoint in training.resume_from_checkpoint" in (caught.value.fix or "")
    assert not caplog.records
    monkeypatch.undo()
    assert find_saved_run(root, "auto", Mesh()).step == 2
    assert sorted(path.name for path in root.iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("resume", ["auto", "step-000002"])
def test_a_folder_that_the_system_hides_is_not_an_empty_one(tmp_path, monkeypatch, resume):
    """Else the run would begin at step 0, and set all of them aside."""
    root, _ = trained_root(tmp_path)

    def refused(path, **_):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir" if resume == "auto" else "pathlib.Path.stat", refused)
    with pytest.raises(MS4Error, match="Permission denied"):
        find_saved_run(root, resume if resume == "auto" else str(root / resume), Mesh())


def test_a_second_damaged_checkpoint_of_a_step_is_kept_beside_the_first(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    shutil.copytree(root / "step-000002", root / "step-000002.quarantine")
    flip(root / "step-000002" / "state.json", 3)
    with warned(caplog, r"kept as step-000002\.quarantine-2, "):
        assert find_saved_run(root, "auto", Mesh()).step == 1
    assert verify_checkpoint(root / "step-000002.quarantine").is_good
    assert not verify_checkpoint(root / "step-000002.quarantine-2").is_good


def test_a_named_folder_is_taken_or_refused_but_never_replaced(tmp_path, caplog):
    root, states = trained_root(tmp_path)
    saved = find_saved_run(root, str(root / "step-000001"), Mesh())
    assert saved.step == 1
    assert (root / "step-000002").is_dir()  # the run may still be refused; then it belongs to the run that wrote it
    with warned(caplog, "superseded"):
        restart_after(root, saved.step)
    assert sorted(path.name for path in root.iterdir()) == ["step-000001", "step-000002.superseded"]
    engine = small_engine(seed=7)
    saved.restore(engine, seed=0)
    assert_same_state(exported(engine), states[1])
    with pytest.raises(CheckpointError, match="name one of"):
        find_saved_run(root, str(root / "step-000007"), Mesh())
    with pytest.raises(
        CheckpointError, match=r"resume_from_checkpoint: this folder is not a checkpoint: it holds no MANIFEST\.json\. Fix: name"
    ):
        find_saved_run(root, str(tmp_path), Mesh())
    flip(root / "step-000001" / "state.json", 3)
    with pytest.raises(CheckpointError, match="damaged"):
        find_saved_run(root, str(root / "step-000001"), Mesh())
    assert (root / "step-000001").is_dir()


def test_never_sets_the_old_run_aside(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    assert find_saved_run(root, "never", Mesh()) is None
    assert find_saved_run(root, "auto", Mesh()).step == 2
    with warned(caplog, "restarts"):
        restart_after(root, 0)
    assert find_saved_run(root, "auto", Mesh()) is None


def test_nothing_there_starts_at_zero(tmp_path):
    assert find_saved_run(tmp_path / "checkpoints", "auto", Mesh()) is None


def test_half_written_folders_are_swept(tmp_path, caplog):
    root, _ = trained_root(tmp_path)
    (root / "step-000001").rename(root / ".tmp-step-000003")
    with warned(caplog, "interrupted save"):
        assert find_saved_run(root, "auto", Mesh()).step == 2
    assert [path.name for path in root.iterdir()] == ["step-000002"]


def test_other_parameters_are_refused_by_name(tmp_path):
    root, _ = trained_root(tmp_path)
    engine = small_engine()
    engine.model.frozen.requires_grad_(True)
    with pytest.raises(CheckpointError, match="1 missing \\['frozen'\\]"):
        find_saved_run(root, "auto", Mesh()).restore(engine, seed=0)


def test_a_state_file_without_its_keys_is_refused(tmp_path):
    root, _ = trained_root(tmp_path, steps=(1,))
    folder = root / "step-000001"
    files = {name: FileSum(**item) for name, item in json.loads((folder / "MANIFEST.json").read_text())["files"].items()}
    (folder / "state.json").unlink()
    (folder / "MANIFEST.json").unlink()
    files["state.json"] = write_synced(folder / "state.json", b'{"step":1}')
    write_manifest(folder, Manifest(1, files))
    with pytest.raises(CheckpointError, match="world_size"):
        find_saved_run(root, "auto", Mesh())


def test_a_checkpoint_of_format_1_is_refused_and_stays(tmp_path):
    root, _ = trained_root(tmp_path, steps=(1,))
    old = {"format": "ms4-run-state", "version": 1, "step": 2, "files": {}}
    (root / "step-000002").mkdir()
    (root / "step-000002" / "MANIFEST.json").write_bytes(canonical_json(old))
    with pytest.raises(CheckpointError, match=r"step-000002/MANIFEST\.json: the checkpoint is of format version 1; .* Fix: go on with"):
        find_saved_run(root, "auto", Mesh())
    assert sorted(path.name for path in root.iterdir()) == ["step-000001", "step-000002"]


def test_another_shape_is_refused_before_anything_changes(tmp_path):
    root, _ = trained_root(tmp_path)
    engine = small_engine(width=7)
    before = exported(engine)
    with pytest.raises(CheckpointError, match=r"first is \[6, 4\] in it; this run has \[7, 4\]"):
        find_saved_run(root, "auto", Mesh()).restore(engine, seed=0)
    assert_same_state(exported(engine), before)
