"""Fitted scales for a model that never was in FP8: those of its weights can be made, those of activations cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import layouts

from ms4_kernels.quantised import Fp8Weight
from ms4_train.weights import open_checkpoint
from ms4_train.weights.convert import convert


@pytest.mark.parametrize("to", ["native-fp8", "hf-fp8"])
def test_weights_alone_can_be_fitted_where_no_scales_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture, to: str) -> None:
    """Enough to train on. That activations have none is said in words, and in the configuration where it has a word for it."""
    layouts.hf_folder(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to=to, weight_scales="fitted", progress=None)
    assert "no scales of activations are known" in caplog.text
    made, pieces = open_checkpoint(tmp_path / "out"), layouts.reference_pieces()
    quantised = [piece for piece in made.pieces().values() if made.weight_scale(piece) is not None]
    assert len(quantised) == 2 * (5 + 3 + 8 * 3)  # per layer: attention, shared expert, eight routed experts
    for piece in quantised:
        assert made.activation_scale(piece) is None
        found, scale, original = made.read_piece(piece), made.weight_scale(piece), pieces[piece.name].float()
        assert isinstance(found, Fp8Weight)
        assert scale is not None
        # E4M3 keeps 3 bits of mantissa: half a step is 2^-4 of the value, or 2^-10 of the scale below its smallest normal number.
        # Hugging Face's gate and up are rounded twice: to scales of their own, then to the larger of the two.
        roundings = 2 if to == "hf-fp8" and piece.matrix in ("gate_proj", "up_proj") and piece.expert is not None else 1
        bound = roundings * 1.1 * torch.maximum(original.abs() * 2**-4, scale.float() * 2**-10)
        assert bool(((found.dequantise(torch.float32) - original).abs() <= bound).all()), piece.name
    if to == "hf-fp8":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["quantization_config"]["activation_scheme"] == "dynamic"
    else:  # the word that vLLM takes for "scale activations as you run"
        params = json.loads((tmp_path / "out" / "params.json").read_text())
        assert params["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
        caplog.clear()
        convert(tmp_path / "out", tmp_path / "again", to="hf-fp8", progress=None)
        assert "no scales of activations are known" in caplog.text  # also where the weights' were kept
