"""Errors of single pieces against numbers computed from the tensors that were stored."""

import math

import pytest
import torch
from safetensors.torch import save_file
from support.layouts import fp8_reference_pieces, hf_folder, native_folder, native_fp8_folder, reference_pieces

from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare import piece_error as module
from ms4_train.weights.compare.piece_error import common_dtype, compare_piece, compare_rounded, relative

GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
QUERY = "model.layers.0.self_attn.q_a_proj.weight"


def compared(a, b, name):
    piece = a.pieces()[name]
    return compare_piece(a, b, piece)


def test_one_changed_value_is_found_measured_and_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_VALUES", 100)  # chunks of one row
    pieces = reference_pieces()
    hf_folder(tmp_path / "a", pieces=pieces)
    changed = dict(pieces)
    changed[GATE] = pieces[GATE].clone()
    changed[GATE][17, 5] += 1.5
    native_folder(tmp_path / "b", pieces=changed)
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    found = compared(a, b, GATE)
    step = float(changed[GATE][17, 5].double() - pieces[GATE][17, 5].double())
    assert not found.is_identical
    assert found.worst == (17, 5)
    assert found.max_abs_error == step
    assert found.worst_values == (float(pieces[GATE][17, 5]), float(changed[GATE][17, 5]))
    assert found.relative_error == pytest.approx(step / float(pieces[GATE].double().norm()), rel=1e-12)
    for name in a.pieces():
        assert name == GATE or compared(a, b, name).is_unchanged, name


def test_wider_types_are_compared_as_numbers_and_rounded_on_request(tmp_path):
    wide = reference_pieces(dtype=torch.float32)
    hf_folder(tmp_path / "wide", pieces=wide, dtype=torch.float32)
    hf_folder(tmp_path / "narrow", pieces={name: value.bfloat16() for name, value in wide.items()})
    hf_folder(tmp_path / "again", pieces={name: value.bfloat16().float() for name, value in wide.items()}, dtype=torch.float32)
    w, n, again = (open_checkpoint(tmp_path / name) for name in ("wide", "narrow", "again"))
    piece = w.pieces()[QUERY]
    assert 0 < compare_piece(w, n, piece).relative_error < 2**-8
    assert compare_rounded(w, n, piece).is_unchanged
    assert compare_piece(n, again, piece).is_unchanged
    assert common_dtype(w, n, piece) == common_dtype(n, w, piece) == torch.bfloat16


@pytest.mark.parametrize(("wrong", "size"), [(math.nan, math.inf), (math.inf, math.inf), (-0.0, 0.0)])
def test_values_that_are_no_numbers_and_the_sign_of_zero_count(tmp_path, wrong, size):
    pieces = reference_pieces()
    pieces[QUERY][0, 0] = 0.0
    hf_folder(tmp_path / "a", pieces=pieces)
    changed = pieces[QUERY].clone()
    changed[0, 0] = wrong
    hf_folder(tmp_path / "b", pieces=pieces | {QUERY: changed})
    found = compared(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"), QUERY)
    assert not found.is_identical
    assert found.max_abs_error == size
    assert found.relative_error == size
    same = compared(open_checkpoint(tmp_path / "b"), open_checkpoint(tmp_path / "b"), QUERY)
    assert same.is_unchanged


def test_codes_and_scales_are_told_apart(tmp_path, monkeypatch):
    native_fp8_folder(tmp_path / "a")
    stored = native_fp8_folder(tmp_path / "b")
    codes = stored["layers.0.attention.wq_a.weight"].view(torch.uint8)
    codes[3, 3] ^= 1
    stored["layers.0.attention.wq_b.qscale_weight"] *= 2
    stored["layers.0.attention.wo.qscale_act"] *= 2
    save_file(stored, tmp_path / "b" / "consolidated.safetensors")
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    found = {name: compared(a, b, f"model.layers.0.self_attn.{name}.weight") for name in ("q_a_proj", "q_b_proj", "o_proj", "kv_b_proj")}
    state = {name: (e.is_identical, e.same_codes, e.same_scales, e.same_activation_scale) for name, e in found.items()}
    assert state == {
        "q_a_proj": (False, False, True, True),
        "q_b_proj": (False, True, False, True),
        "o_proj": (True, True, True, False),
        "kv_b_proj": (True, True, True, True),
    }
    monkeypatch.setattr(module, "CHUNK_VALUES", 64)  # what the fourth of many chunks shows is not forgotten in the last
    again = compared(a, b, QUERY)
    assert (again.is_identical, again.same_codes, again.same_scales, again.worst) == (False, False, True, (3, 3))
    again = compared(a, b, QUERY.replace("q_a", "q_b"))
    assert (again.is_identical, again.same_codes, again.same_scales) == (False, True, False)
    assert found["q_b_proj"].relative_error == pytest.approx(1.0)
    assert not found["o_proj"].is_unchanged
    assert compared(a, a, QUERY).same_codes is True


def test_quantised_weights_against_their_values(tmp_path):
    native_fp8_folder(tmp_path / "a")
    hf_folder(tmp_path / "b", pieces=fp8_reference_pieces(reference_pieces()))
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    piece = a.pieces()[GATE]
    found = compare_piece(a, b, piece)
    assert found.same_codes is None
    assert 0 < found.relative_error < 2**-8  # fp32 against its rounding to bf16
    assert compare_rounded(a, b, piece).is_identical


def test_relative_of_degenerate_sums():
    assert relative(0.0, 0.0) == 0.0
    assert relative(1.0, 0.0) == math.inf
    assert relative(math.inf, 1.0) == math.inf
    assert relative(1.0, 4.0) == 0.5
