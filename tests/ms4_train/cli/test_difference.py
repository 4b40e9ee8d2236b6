"""The table of differences and its JSON, from real comparisons."""

import io
import json
import math

import pytest
from rich.console import Console
from support.layouts import hf_folder, native_folder, native_fp8_folder, reference_pieces

from ms4_train.cli.difference import difference_json, print_difference
from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare.diff import diff

GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"


def compared(a, b):
    return diff(open_checkpoint(a), open_checkpoint(b))


def screen(found, tolerance=0.0, top=20):
    stream = io.StringIO()
    print_difference(found, tolerance, top=top, console=Console(file=stream, width=200))
    return stream.getvalue()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    hf_folder(folder)
    return folder


def test_identical_is_one_line(plain, tmp_path):
    native_folder(tmp_path)
    found = compared(plain, tmp_path)
    count = len(found.pieces)
    lines = screen(found).splitlines()
    assert lines[-1] == f"{count} pieces: {count} identical"
    assert all(line.startswith("configuration: ") and line.endswith("changes nothing that is computed") for line in lines[:-1])
    assert GATE in screen(found, top=None)
    content = json.loads(difference_json(found, 0.0, everything=False))
    assert (content["num_pieces"], content["num_identical"], content["pieces"]) == (count, count, [])
    assert content["is_within_tolerance"] is True
    assert len(json.loads(difference_json(found, 0.0, everything=True))["pieces"]) == count


def test_worst_first_with_element_and_tolerance(plain, tmp_path):
    pieces = reference_pieces()
    pieces[GATE] = pieces[GATE].clone()
    pieces[GATE][2, 7] = 100.0
    pieces["model.norm.weight"] = pieces["model.norm.weight"] * 1.125
    native_folder(tmp_path, pieces=pieces)
    found = compared(plain, tmp_path)
    shown = screen(found)
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert GATE in rows[0]
    assert f"(2, 7): {float(reference_pieces()[GATE][2, 7]):.5g}, 100" in rows[0]
    assert "model.norm.weight" in rows[1]
    assert len(rows) == 2
    assert f"2 differ, worst {GATE}" in shown
    assert "and 1 more that differ" in screen(found, top=1)
    assert "1 above the tolerance of 0.2" in screen(found, tolerance=0.2)


def test_codes_scales_and_activations(tmp_path):
    from safetensors.torch import save_file

    native_fp8_folder(tmp_path / "a")
    stored = native_fp8_folder(tmp_path / "b")
    stored["layers.0.attention.wq_b.qscale_weight"] *= 2
    stored["layers.0.attention.wo.qscale_act"] *= 2
    save_file(stored, tmp_path / "b" / "consolidated.safetensors")
    shown = screen(compared(tmp_path / "a", tmp_path / "b"))
    assert "equal / differ" in shown
    assert "1 scales of activations differ" in shown


def test_what_only_one_has_shapes_and_arithmetic(plain, tmp_path):
    native_folder(tmp_path, vision=False, tokenizer=True, apply_scale=True)
    shown = screen(compared(plain, tmp_path))
    assert "only in A: 24 pieces, vision_tower.patch_conv.weight" in shown
    assert "lm_head.weight: [512, 64] in A, [438, 64] in B" in shown
    assert "configuration: attention_scale: " in shown
    assert "; changes what is computed" in shown


def test_infinite_errors_are_json(plain, tmp_path):
    pieces = reference_pieces()
    pieces[GATE][0, 0] = math.nan
    native_folder(tmp_path, pieces=pieces)
    found = compared(plain, tmp_path)
    assert "inf" in screen(found)
    assert json.loads(difference_json(found, 0.0, everything=False), parse_constant=pytest.fail)["pieces"][0]["max_abs_error"] == "inf"
