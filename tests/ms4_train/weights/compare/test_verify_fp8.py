"""Pairs of FP8 checkpoints: codes and scales that change together or not at all, weights quantised anew, scales of activations."""

import pytest
import torch
from safetensors.torch import save_file
from support.layouts import TINY, hf_fp8_folder, hf_fp8_reference_pieces, native_fp8_folder, reference_pieces

from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare import verify as module
from ms4_train.weights.compare.verify import compare_logits, fixed_sequences

SEQUENCES = fixed_sequences(TINY.vocab_size)


def compared(source, result):
    return compare_logits(open_checkpoint(source), open_checkpoint(result), SEQUENCES)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    native_fp8_folder(folder := tmp_path_factory.mktemp("fp8"))
    return folder


def test_one_wrong_scale_of_an_fp8_copy(tmp_path, fp8):
    stored = native_fp8_folder(tmp_path)
    stored["layers.0.shared_experts.w3.qscale_weight"] *= 1.25
    save_file(stored, tmp_path / "consolidated.safetensors")
    found = compared(fp8, tmp_path)
    assert not found.passed
    assert found.cause is not None
    assert found.cause.piece.name == "model.layers.0.mlp.shared_experts.up_proj.weight"
    assert "1.25 times the source's: a wrong scale" in found.cause.words


def test_codes_and_scales_change_together_or_not_at_all(tmp_path, fp8):
    """A scale off by its last bit alone, or a code by one bit, is within every tolerance and still no conversion."""
    name = "layers.0.experts.1.w2"
    for change in ("scale", "code"):
        stored = native_fp8_folder(tmp_path / change)
        if change == "scale":
            stored[f"{name}.qscale_weight"].view(torch.int16).add_(1)
        else:
            stored[f"{name}.weight"].view(torch.uint8)[2, 2] ^= 1
        save_file(stored, tmp_path / change / "consolidated.safetensors")
        found = compared(fp8, tmp_path / change)
        assert not found.passed
        assert found.cause is not None
        assert found.cause.piece.name == "model.layers.0.mlp.experts.1.down_proj.weight"
    assert [piece.name for piece in compared(fp8, tmp_path / "scale").weights] == ["model.layers.0.mlp.experts.1.down_proj.weight"]


def test_a_code_that_changed_under_its_scale_is_seen_in_a_lossy_pair(tmp_path, fp8):
    stored = hf_fp8_folder(tmp_path)
    assert compared(fp8, tmp_path).passed
    stored["language_model.model.layers.0.self_attn.o_proj.weight"].view(torch.uint8)[2, 2] ^= 1
    save_file(stored, tmp_path / "model.safetensors")
    found = compared(fp8, tmp_path)
    assert found.first_failing is None
    assert [piece.name for piece in found.weights] == ["model.layers.0.self_attn.o_proj.weight"]


def test_a_scale_that_was_rounded_to_a_narrower_type_is_no_mistake(tmp_path):
    stored = native_fp8_folder(tmp_path / "a", scale_dtype=torch.float32)
    wide = {name: value * 1.001 if name.endswith("qscale_weight") else value for name, value in stored.items()}
    save_file(wide, tmp_path / "a" / "consolidated.safetensors")
    native_fp8_folder(tmp_path / "b")
    narrow = {name: value.bfloat16() if "qscale" in name else value for name, value in wide.items()}
    save_file(narrow, tmp_path / "b" / "consolidated.safetensors")
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.expectation.tolerance == module.FP8_TOLERANCE
    assert found.weights == ()


def test_fp8_quantised_anew_passes_and_hides_no_mistake(tmp_path):
    hf_fp8_folder(tmp_path / "a")
    native_fp8_folder(tmp_path / "b", pieces=(pieces := hf_fp8_reference_pieces(reference_pieces())))  # scales of its own for gate and up
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.expectation.tolerance == module.FP8_TOLERANCE
    assert "quantised anew" in found.expectation.reason
    assert (found.first_failing, found.weights) == (None, ())
    gate, up = (f"model.layers.1.mlp.experts.3.{matrix}_proj.weight" for matrix in ("gate", "up"))
    pieces[gate], pieces[up] = pieces[up], pieces[gate]
    native_fp8_folder(tmp_path / "c", pieces=pieces)
    wrong = {piece.name for piece in compared(tmp_path / "a", tmp_path / "c").weights}
    assert wrong == {gate, up}


@pytest.mark.parametrize("result", [native_fp8_folder, hf_fp8_folder])
def test_scales_of_activations_are_compared(tmp_path, fp8, result):
    """Nothing here computes with them; an engine does. In Hugging Face's layout gate and up share the larger one."""
    stored = result(tmp_path)
    assert compared(fp8, tmp_path).activation_scales == ()
    native = result is native_fp8_folder
    name = "layers.1.experts.2.w2.qscale_act" if native else "language_model.model.layers.1.mlp.experts.down_proj_activation_scale"
    stored[name] = stored[name] * 2
    save_file(stored, tmp_path / ("consolidated.safetensors" if native else "model.safetensors"))
    found = compared(fp8, tmp_path)
    assert not found.passed
    assert found.first_failing is None
    wanted = [f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in ([2] if native else range(8))]
    assert list(found.activation_scales) == wanted
