"""Adapters trained on frozen FP8 and NVFP4 weights: the trajectory and the memory, against the same weights dequantised."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.layouts import (
    fp8_reference_pieces,
    hf_folder,
    hf_fp8_folder,
    native_fp8_folder,
    nvfp4_folder,
    nvfp4_reference_pieces,
    reference_pieces,
)
from support.layouts_pieces import TINY
from support.sft_files import metrics, sft_run, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_recipes import sft
from ms4_recipes.prepare_model import prepare_model
from ms4_train.errors import AdapterError, ConfigError
from ms4_train.model import SequenceLayout
from ms4_train.model.quantised import QuantisedLinear
from ms4_train.parallel import init_mesh
from ms4_train.weights import base_fingerprint

LAYOUTS = {"native-fp8": native_fp8_folder, "hf-fp8": hf_fp8_folder, "nvfp4": nvfp4_folder}
ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION + SHARED, "target_parameters": STACKS}
STEPS = 6
VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "vision_encoder.",
    "vision_language_adapter.",
    "patch_merger.",
    "pre_mm_projector_norm.",
)
WEIGHT_SCALES = (".qscale_weight", "_scale_inv", ".weight_global_scale")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised")
    write_rows(path / "a.jsonl", 60, seed=1)
    write_rows(path / "b.jsonl", 30, seed=2)
    for name, write in LAYOUTS.items():
        write(path / name, tokenizer=True)
    return path


def lora(folder: Path, output: str, base: str, dtype: str = "float32", **sections: Any) -> Any:
    model = {"path": str(folder / base), "dtype": dtype, **sections.pop("model", {})}
    training = {"max_steps": STEPS, "learning_rate": 1e-2, **sections.pop("training", {})}
    return sft_run(folder, output, model=model, adapter=ADAPTER, training=training, **sections)


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each run printed."""
    return {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", LAYOUTS)
def test_the_loss_follows_the_dequantised_run(
    folder: Path, base: str, dtype: str, said: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("kept", {}), ("wide", {"dequantize": True})):
        sft.run(lora(folder, f"{base}-{dtype}-{name}", base, dtype, model=changes))
        said[name] = capsys.readouterr().out
    kept, wide = (list(metrics(folder, f"{base}-{dtype}-{name}").values()) for name in ("kept", "wide"))
    assert len(kept) == STEPS
    # Both multiply by the same values, code * scale rounded to the type; fp32 sums may be made in another order, and bf16 rounds their
    # results to 8 bits (2e-3 of each activation, over two layers and a mean of some hundred tokens well below 1e-3 of the loss).
    assert kept == pytest.approx(wide, abs=1e-5 if dtype == "float32" else 1e-3)
    assert kept[-1] < kept[0] - 1
    word = "NVFP4" if base == "nvfp4" else "FP8"
    assert f"base weights: {word}, kept quantised: " in said["kept"]
    assert f"base weights: {word}, dequantised to {dtype}: " in said["wide"]
    trained = [text.partition("trained parameters:")[2].partition("data:")[0] for text in said.values()]
    assert trained[0] == trained[1] != "", "frozen quantised weights count as parameters of the model"


def test_gradient_checkpointing_changes_nothing(folder: Path) -> None:
    """Weights are then dequantised a third time, for the second forward pass."""
    sft.run(lora(folder, "checkpointing", "nvfp4", training={"gradient_checkpointing": True}))
    assert metrics(folder, "checkpointing") == metrics(folder, "nvfp4-float32-kept")


def test_control_other_scales_are_another_trajectory(folder: Path) -> None:
    """The bound above tells these two apart: the same original weights, whose FP8 codes Hugging Face's fusion rounded once more."""
    native, fused = (list(metrics(folder, f"{base}-float32-kept").values()) for base in ("native-fp8", "hf-fp8"))
    assert max(abs(left - right) for left, right in zip(native, fused, strict=True)) > 2e-3


def prepared(folder: Path, base: str, output: str, **changes: Any) -> Any:
    """The model as the recipe makes it, adapter attached, before the first step."""
    config = lora(folder, output, base, **changes)
    mesh = init_mesh(config.parallel)
    images = config.model.vision != "skip"
    return prepare_model(config, mesh, base_fingerprint(config.model.path), images=images).model


def base_bytes(model: torch.nn.Module) -> int:
    """Memory of everything that is not the adapter, counted over storages: parameters and buffers, saved or not."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for name, tensor in tensors if "lora" not in name}
    return sum(storages.values())


@pytest.mark.parametrize("base", LAYOUTS)
def test_memory_is_that_of_codes_and_scales(folder: Path, base: str) -> None:
    """Counted from what the writer of the files stored, without this project's tables."""
    stored = {}
    for file in (folder / base).glob("*.safetensors"):
        stored |= load_file(file)
    text = {name: tensor for name, tensor in stored.items() if not name.startswith(VISION)}
    vision = sum(4 * tensor.numel() for name, tensor in stored.items() if name.startswith(VISION))
    codes = sum(tensor.nbytes for tensor in text.values() if tensor.itemsize == 1)  # with NVFP4's block scales
    scales = sum(4 * tensor.numel() for name, tensor in text.items() if name.endswith(WEIGHT_SCALES))  # held in fp32
    rest = sum(4 * tensor.numel() for name, tensor in text.items() if tensor.itemsize > 1 and "scale" not in name)  # float32 asked for
    model = prepared(folder, base, "memory")
    assert base_bytes(model) == codes + scales + rest + vision
    assert base_bytes(prepared(folder, base, "memory", model={"vision": "skip"})) == codes + scales + rest
    dequantised = prepared(folder, base, "memory", model={"vision": "skip", "dequantize": True})
    assert base_bytes(dequantised) > 1.5 * (codes + scales + rest)


def kept_by_forward(model: Any) -> int:
    """Bytes that torch's allocator gave out during a forward pass and did not get back before its end: what backward needs."""
    ids_t = torch.arange(8) % 400
    layout = SequenceLayout.from_lengths([8])
    model.logits(model(ids_t, layout)).sum().backward()  # what is made once, at the first use, is not counted
    model.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = model.logits(model(ids_t, layout)).sum()
    kept = sum(event.self_cpu_memory_usage for event in profile.events() or [])
    assert kept > 0
    loss.backward()
    return kept


@pytest.mark.parametrize("base", LAYOUTS)
def test_nothing_dequantised_is_kept_between_forward_and_backward(folder: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = prepared(folder, base, "memory")
    before = base_bytes(quantised)
    expected = kept_by_forward(prepared(folder, base, "memory", model={"dequantize": True}))
    assert kept_by_forward(quantised) <= expected + 4096  # a few bytes of bookkeeping per module; one matrix of the tiny model has 8192
    assert base_bytes(quantised) == before
    # Control: a layer that hands autograd its dequantised values is caught.
    monkeypatch.setattr(QuantisedLinear, "forward", lambda self, x: torch.nn.functional.linear(x, self.weight))
    assert kept_by_forward(quantised) > expected + 4096


def test_full_fine_tuning_dequantises_and_cannot_be_told_not_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = sft_run(folder, "full", model={"path": str(folder / "native-fp8")})
    sft.run(config, dry_run=True)
    assert "base weights: FP8, dequantised to float32" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"model\.dequantize: is false.*FP8.*adapter"):
        sft.run(sft_run(folder, "full", model={"path": str(folder / "native-fp8"), "dequantize": False}))
    hf_folder(folder / "plain", tokenizer=True)
    sft.run(sft_run(folder, "full", model={"path": str(folder / "plain"), "dequantize": False}), dry_run=True)  # nothing to keep there
    assert "base weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("quantised", "meaning"), [("native-fp8", fp8_reference_pieces), ("nvfp4", nvfp4_reference_pieces)], ids=["native-fp8", "nvfp4"]
)
def test_an_adapter_moves_between_a_quantised_base_and_its_bf16_conversion(folder: Path, quantised: str, meaning: Any) -> None:
    """Both ways; the bf16 files are made of what the format's own formula says the codes mean."""
    tiny = dataclasses.replace(TINY, vocab_size=tiny_tokenizer().vocab_size)
    wide = f"{quantised}-in-bf16"
    hf_folder(folder / wide, tokenizer=True, pieces=meaning(reference_pieces(tiny=tiny), tiny))
    for first, second in ((quantised, wide), (wide, quantised)):
        output = f"{first}-first"
        adapter = sft.run(lora(folder, output, first, "bfloat16"))
        for base in (first, second):
            model = {"path": str(folder / base), "dtype": "bfloat16"}
            sft.run(sft_run(folder, f"{output}-then-{base}", model=model, adapter={"init_from": str(adapter)}, training={"max_steps": 3}))
        same, moved = (list(metrics(folder, f"{output}-then-{base}").values()) for base in (first, second))
        assert moved == pytest.approx(same, abs=1e-3)  # in bf16 the two bases have the same values
        assert same[0] < metrics(folder, output)[1] - 1, "the adapter did come along"
    other = fp8_reference_pieces(reference_pieces(seed=3, tiny=tiny), tiny)
    hf_folder(folder / f"{quantised}-other", tokenizer=True, pieces=other)
    config = sft_run(folder, "other", model={"path": str(folder / f"{quantised}-other")}, adapter={"init_from": str(adapter)})
    with pytest.raises(AdapterError, match="another model"):
        sft.run(config)
