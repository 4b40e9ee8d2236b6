"""Whole checkpoints against each other, in all pairs of layouts."""

import itertools
import json

import pytest
from support.checkpoints import edit_json
from support.layouts import (
    TINY,
    fp8_reference_pieces,
    hf_folder,
    hf_fp8_folder,
    hf_fp8_reference_pieces,
    native_folder,
    native_fp8_folder,
    nvfp4_folder,
    nvfp4_reference_pieces,
    reference_pieces,
)
from support.layouts_pieces import piece_shapes

from ms4_train.errors import WeightsError
from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare.diff import compare_pieces, diff

MAKERS = {"hf": hf_folder, "native": native_folder, "native-fp8": native_fp8_folder, "hf-fp8": hf_fp8_folder, "nvfp4": nvfp4_folder}
MEANING = {"native-fp8": fp8_reference_pieces, "hf-fp8": hf_fp8_reference_pieces, "nvfp4": nvfp4_reference_pieces}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    for name, make in MAKERS.items():
        make(root / name)
    return root


def meaning(layout):
    pieces = reference_pieces()
    return MEANING[layout](pieces) if layout in MEANING else pieces


@pytest.mark.parametrize(("left", "right"), itertools.product(MAKERS, repeat=2))
def test_every_pair_of_layouts_agrees_with_the_stored_values(folders, left, right):
    found = diff(open_checkpoint(folders / left), open_checkpoint(folders / right))
    assert {piece.name for piece in found.pieces} == set(piece_shapes(TINY))
    assert (found.only_a, found.only_b, found.reshaped) == ((), (), ())
    a, b = meaning(left), meaning(right)
    errors = [piece.relative_error for piece in found.pieces]
    assert errors == sorted(errors, reverse=True)
    for piece in found.pieces:
        expected = float((b[piece.name].double() - a[piece.name].double()).norm() / a[piece.name].double().norm())
        # The meanings are rounded to bf16; the comparison is not.
        assert piece.relative_error == pytest.approx(expected, abs=2**-8), piece.name
        assert piece.is_identical or a[piece.name].dim() == 2
    if left == right or {left, right} == {"hf", "native"}:
        assert found.num_identical == len(found.pieces)
        assert found.is_within(0)
        assert found.worst is None
    else:
        assert not found.is_within(0)
        assert found.is_within(errors[0])
        assert not found.is_within(errors[0] * 0.99)


def test_what_only_one_side_has_and_other_shapes(tmp_path):
    hf_folder(tmp_path / "a")
    native_folder(tmp_path / "b", vision=False, tokenizer=True)
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    found = diff(a, b)
    assert {name.split(".")[0] for name in found.only_a} == {"vision_tower", "multi_modal_projector"}
    assert not found.only_b
    assert diff(b, a).only_b == found.only_a
    assert [(piece.name, piece.a, piece.b) for piece in found.reshaped] == [
        (f"{name}.weight", (512, 64), (438, 64)) for name in ("model.embed_tokens", "lm_head")
    ]
    assert "vocab_size" in {change.key for change in found.config}
    assert not found.is_within(1e9)


def test_equal_weights_under_another_arithmetic_are_no_match(tmp_path):
    hf_folder(tmp_path / "a")
    hf_folder(tmp_path / "b")
    edit_json(tmp_path / "b" / "config.json", lambda content: content["text_config"].update(rms_norm_eps=1e-5, pad_token_id=3))
    found = diff(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
    assert found.num_identical == len(found.pieces)
    assert [(change.key, change.is_computational) for change in found.config] == [("rms_norm_eps", True), ("pad_token_id", False)]
    assert not found.is_within(1.0)
    edit_json(tmp_path / "b" / "config.json", lambda content: content["text_config"].update(rms_norm_eps=1e-6))
    assert diff(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")).is_within(0)


def test_a_scale_of_activations_alone_is_a_difference(tmp_path):
    from safetensors.torch import save_file

    native_fp8_folder(tmp_path / "a")
    stored = native_fp8_folder(tmp_path / "b")
    stored["layers.0.attention.wo.qscale_act"] *= 2
    save_file(stored, tmp_path / "b" / "consolidated.safetensors")
    found = diff(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
    assert found.num_identical == len(found.pieces) - 1
    assert not found.is_within(0)
    assert found.is_within(1e-9)  # no weight differs


def test_progress_order_and_failures(tmp_path):
    native_fp8_folder(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    seen = []
    wanted = list(reversed(list(checkpoint.pieces().values())))
    found = compare_pieces(checkpoint, checkpoint, wanted, threads=3, progress=lambda done, total: seen.append((done, total)))
    assert [error.name for error in found] == [piece.name for piece in wanted]
    total = sum(piece.numel for piece in wanted)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    file = tmp_path / "consolidated.safetensors"
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    start = header["layers.1.experts.2.w2.weight"]["data_offsets"][0] + 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as handle:
        handle.seek(start)
        handle.write(b"\x7f")  # NaN in E4M3
    with pytest.raises(WeightsError, match=r"layers\.1\.experts\.2\.w2\.weight.*NaN"):
        diff(open_checkpoint(tmp_path), open_checkpoint(tmp_path))


def test_threads_give_the_same_result(folders):
    a, b = open_checkpoint(folders / "hf"), open_checkpoint(folders / "nvfp4")
    assert diff(a, b, threads=1) == diff(a, b, threads=5)
