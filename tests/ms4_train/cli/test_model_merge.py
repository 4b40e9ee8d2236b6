"""``ms4 model merge`` on every public layout: a multimodal bf16 folder with the adapter in it, and all that lay beside the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import full_section, our_logits, randomise, relative_error, some_ids
from support.every_layout import NAMES, QUANTISED, write_layout
from support.layouts import reference_pieces
from typer.testing import CliRunner

from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.cli.model import app
from ms4_train.weights import base_fingerprint, load_model, open_checkpoint


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "150"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


def saved_adapter(base: Path, folder: Path) -> Any:
    """Write a random adapter of the base; returns the base with it attached, fp32."""
    model = load_model(base, dtype=torch.float32)
    attach(model, full_section())
    randomise(adapter_tensors(model), std=0.05)
    save_adapter(
        adapter_tensors(model),
        folder,
        section=full_section(),
        config=model.config,
        base_path=base,
        base_fingerprint=base_fingerprint(base),
    )
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_model_is_whole(tmp_path: Path, name: str) -> None:
    from transformers import Mistral3ForConditionalGeneration

    base = write_layout(tmp_path, name).folder
    (base / "preprocessor_config.json").write_text("{}")
    adapted = saved_adapter(base, tmp_path / "adapter")
    printed = run("merge", base, tmp_path / "adapter", tmp_path / "out", "--dtype", "float32")
    if name in QUANTISED:
        assert f"base weights: {QUANTISED[name]}, dequantised to float32" in printed
    ids_t = some_ids(vocab_size=400)
    expected = our_logits(adapted, ids_t)
    merged = load_model(tmp_path / "out", dtype=torch.float32)
    assert relative_error(our_logits(merged, ids_t), expected) < 1e-4  # fp32 products in another order

    loader: Any = Mistral3ForConditionalGeneration
    theirs, info = loader.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = theirs.eval()(input_ids=ids_t[None], use_cache=False).logits[0]
    assert relative_error(logits, expected) < 1e-4

    stored = load_file(tmp_path / "out" / "model.safetensors")
    vision = {key: tensor for key, tensor in reference_pieces().items() if key.startswith(("vision_tower.", "multi_modal_projector."))}
    assert all(torch.equal(stored[key], tensor) for key, tensor in vision.items())
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert (tmp_path / "out" / "tekken.json").exists()
    assert (tmp_path / "out" / "fp8_scales.json").exists() == (QUANTISED.get(name) == "FP8")


def test_the_type_of_a_quantised_base_is_that_of_its_other_weights(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "both").folder
    saved_adapter(base, tmp_path / "adapter")
    printed = run("merge", base, tmp_path / "adapter", tmp_path / "out")
    assert "base weights: FP8, dequantised to bfloat16" in printed
    assert open_checkpoint(tmp_path / "out").dtype == torch.bfloat16
