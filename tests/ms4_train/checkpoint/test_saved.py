"""Ranges of values out of pieces, whoever wrote them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.run_state import save_now, small_engine

from ms4_train.checkpoint import saved as saved_module
from ms4_train.checkpoint.part import HeldPart, write_part
from ms4_train.checkpoint.saved import SavedParameter, SavedPiece, SavedRun
from ms4_train.errors import CheckpointError
from ms4_train.parallel import StatePiece

KINDS = ("weight", "exp_avg", "exp_avg_sq")
SIZE = 40


def written(folder, cuts, shape=(8, 5)):
    """One parameter in pieces between cuts, each of another rank; returns its three tensors, flattened."""
    folder.mkdir()
    whole = {kind: torch.randn(SIZE) for kind in KINDS}
    borders = [0, *cuts, SIZE]
    for rank in range(len(borders) - 1):
        start, stop = borders[rank : rank + 2]
        piece = StatePiece("p", shape, start, {kind: tensor[start:stop].clone() for kind, tensor in whole.items()}, 6)
        write_part(folder, HeldPart(rank, [piece], {}))
    (folder / "state.json").write_text(json.dumps({"step": 6, "world_size": len(borders) - 1}))
    return whole


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, SIZE - 1), unique=True, max_size=5).map(sorted), data=st.data())
def test_any_range_of_any_pieces(tmp_path_factory, cuts, data):
    folder = tmp_path_factory.mktemp("saved") / "step"
    whole = written(folder, cuts)
    saved = SavedRun.open(folder)
    for _ in range(5):
        start = data.draw(st.integers(0, SIZE - 1))
        stop = data.draw(st.integers(start + 1, SIZE))
        found = saved.read("p", start, stop)
        assert int(found["step"]) == 6
        assert all(torch.equal(found[kind], whole[kind][start:stop]) for kind in KINDS)


def test_only_the_files_that_hold_a_range_are_opened(tmp_path, monkeypatch):
    written(tmp_path / "step", [10, 20, 30])
    opened, open_file = [], saved_module.safe_open

    def opening(path, **keys):
        opened.append(path.name)
        return open_file(path, **keys)

    monkeypatch.setattr(saved_module, "safe_open", opening)
    SavedRun.open(tmp_path / "step").read("p", 10, 21)
    assert opened == ["rank-00001-000.safetensors", "rank-00002-000.safetensors"]


def test_overlapping_pieces_of_a_range():
    pieces = tuple(SavedPiece(start, start + 10, None) for start in (0, 10, 20))
    parameter = SavedParameter((30,), 1, pieces)
    assert parameter.overlapping(9, 10) == [pieces[0]]
    assert parameter.overlapping(9, 11) == list(pieces[:2])
    assert parameter.overlapping(0, 30) == list(pieces)
    assert parameter.overlapping(29, 30) == [pieces[2]]


@pytest.mark.parametrize(
    "change",
    [
        lambda piece: piece.update(start=11),
        lambda piece: piece.update(start=9),
        lambda piece: piece.update(length=29),
        lambda piece: piece.update(shape=[8, 6]),
        lambda piece: piece.update(step=7),
    ],
)
def test_pieces_with_gaps_or_of_two_minds_are_refused(tmp_path, change):
    written(tmp_path / "step", [10])
    path = tmp_path / "step" / "rank-00001.json"
    content = json.loads(path.read_text())
    change(content["pieces"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="p: the pieces that ranks wrote do not fit together"):
        SavedRun.open(tmp_path / "step")


def test_a_missing_tensor_is_named(tmp_path):
    folder = save_now(tmp_path, small_engine(), 1)
    saved = SavedRun.open(folder)
    (folder / "rank-00000-000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00000-000\.safetensors: first: it cannot be read"):
        saved.read("first", 0, 3)
