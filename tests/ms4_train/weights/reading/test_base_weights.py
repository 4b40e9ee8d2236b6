"""The line that says how a quantised base is held, against sizes counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.layouts import hf_folder, native_fp8_folder

from ms4_train.weights import load_model, open_checkpoint
from ms4_train.weights.reading.base_weights import base_weights_line, readable_bytes, weight_bytes


def test_bytes_are_those_of_codes_scales_and_the_rest(tmp_path: Path) -> None:
    native_fp8_folder(tmp_path / "base", vision=False)
    stored = load_file(tmp_path / "base" / "consolidated.safetensors")
    values = {name: tensor for name, tensor in stored.items() if "qscale" not in name}
    scales = sum(name.endswith("qscale_weight") for name in stored)
    layout = open_checkpoint(tmp_path / "base").layout
    kept = load_model(tmp_path / "base", dtype=torch.bfloat16, dequantise=False)
    expected = sum(tensor.nbytes for tensor in values.values()) + 4 * scales
    assert weight_bytes(kept) == expected
    wide = 2 * sum(tensor.numel() for tensor in values.values())
    shown = f"base weights: FP8, kept quantised: {readable_bytes(expected)} ({readable_bytes(wide)} in bfloat16)"
    assert base_weights_line(layout, kept) == shown
    dequantised = load_model(tmp_path / "base", dtype=torch.bfloat16)
    assert weight_bytes(dequantised) == wide
    assert base_weights_line(layout, dequantised) == f"base weights: FP8, dequantised to bfloat16: {readable_bytes(wide)}"


def test_a_base_that_is_not_quantised_says_nothing(tmp_path: Path) -> None:
    hf_folder(tmp_path / "base")
    assert base_weights_line(open_checkpoint(tmp_path / "base").layout, load_model(tmp_path / "base", dtype=torch.float32)) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (237_945_653_248, "238 GB"),
    ],
)
def test_three_digits(count: int, text: str) -> None:
    assert readable_bytes(count) == text
