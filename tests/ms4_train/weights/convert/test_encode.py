"""Chunks of rows give what whole matrices give, and a value that a type cannot hold is refused."""

import itertools

import pytest
import torch
from support import layouts
from support.conversion import different, stored_tensors

from ms4_train.errors import WeightsError
from ms4_train.weights.convert import convert, encode
from ms4_train.weights.convert.encode import chunks
from ms4_train.weights.layouts.pieces import Part, Piece


def test_chunks_cover_the_rows_once_and_are_small(monkeypatch):
    monkeypatch.setattr(encode, "CHUNK_VALUES", 1000)
    for shape in ((7,), (1, 5000), (300, 64), (10, 3, 14, 14)):
        piece = Piece("p", shape, Part.TEXT)
        found = list(chunks(piece))
        assert found[0][0] == 0
        assert found[-1][1] == shape[0]
        assert all(a < b == c for (a, b), (c, _) in itertools.pairwise(found))
        assert all((b - a) * (piece.numel // shape[0]) <= 1000 or b - a == 1 for a, b in found)


@pytest.mark.parametrize("to", ["hf", "hf-fp8", "native-fp8"])
@pytest.mark.parametrize("weight_scales", ["kept", "fitted"])
def test_small_chunks_change_nothing(tmp_path, monkeypatch, to, weight_scales):
    if to == "hf" and weight_scales == "fitted":
        return
    layouts.native_fp8_folder(tmp_path / "fp8")
    convert(tmp_path / "fp8", tmp_path / "plain", to="native", progress=None)
    for source in ("fp8", "plain"):
        convert(tmp_path / source, tmp_path / "whole" / source, to=to, weight_scales=weight_scales, progress=None)
    monkeypatch.setattr(encode, "CHUNK_VALUES", 333)  # no multiple of any width
    for source in ("fp8", "plain"):
        convert(tmp_path / source, tmp_path / "parts" / source, to=to, weight_scales=weight_scales, progress=None)
        assert different(stored_tensors(tmp_path / "parts" / source), stored_tensors(tmp_path / "whole" / source)) == []


def test_a_value_that_bf16_cannot_hold_is_refused(tmp_path):
    pieces = layouts.reference_pieces(dtype=torch.float32)
    pieces["model.layers.1.mlp.gate.weight"][2, 2] = torch.finfo(torch.float32).max
    layouts.hf_folder(tmp_path / "hf", dtype=torch.float32, pieces=pieces)
    with pytest.raises(WeightsError, match="cannot hold") as caught:
        convert(tmp_path / "hf", tmp_path / "out", to="native", dtype="bfloat16", progress=None)
    assert caught.value.key == "language_model.model.layers.1.mlp.gate.weight"
    convert(tmp_path / "hf", tmp_path / "out", to="native", progress=None)
    # A value that is infinite already is no loss of the cast.
    pieces["model.layers.1.mlp.gate.weight"][2, 2] = torch.inf
    layouts.hf_folder(tmp_path / "infinite", dtype=torch.float32, pieces=pieces)
    convert(tmp_path / "infinite", tmp_path / "out of infinite", to="native", dtype="bfloat16", progress=None)


def test_a_matrix_of_zeros_can_be_fitted(tmp_path):
    pieces = layouts.reference_pieces()
    name = "model.layers.0.mlp.experts.6.down_proj.weight"
    pieces[name].zero_()
    layouts.native_folder(tmp_path / "native", pieces=pieces)
    layouts.native_fp8_folder(tmp_path / "fp8")
    convert(tmp_path / "native", tmp_path / "out", to="native-fp8", scales=tmp_path / "fp8", weight_scales="fitted", progress=None)
    found = stored_tensors(tmp_path / "out")
    assert not found["layers.0.experts.6.w2.weight"].float().any()
    assert found["layers.0.experts.6.w2.qscale_weight"] > 0
