"""What a run writes from a base in any layout: a multimodal folder that transformers loads, with everything nobody trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import our_logits, relative_error, some_ids
from support.every_layout import write_layout
from support.layouts import reference_pieces
from support.sft_files import sft_run, write_rows

from ms4_kernels.quantised import Fp8Weight
from ms4_recipes import sft
from ms4_train.parallel import progress
from ms4_train.weights import load_model, open_checkpoint
from ms4_train.weights.convert import convert
from ms4_train.weights.scales_file import find_scales


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    write_rows(path / "a.jsonl", 40, seed=1)
    write_rows(path / "b.jsonl", 20, seed=2)
    return path


def tuned(folder: Path, base: str, **sections: Any) -> Path:
    """Fine-tune all parameters of a base in that layout; returns the folder written."""
    written = write_layout(folder, base).folder
    (written / "processor_config.json").write_text('{"image": 1}')
    return sft.run(sft_run(folder, f"{base}-out", model={"path": str(written)}, training={"max_steps": 2}, **sections))


@pytest.mark.parametrize("base", ["hf", "native-fp8", "both", "nvfp4"])
def test_a_full_fine_tune_keeps_the_vision_of_its_base(folder: Path, base: str) -> None:
    from transformers import Mistral3ForConditionalGeneration

    phases: list[str] = []
    earlier = progress.listen(lambda place: phases.append(place.phase))
    try:
        out = tuned(folder, base)
    finally:
        progress.listen(earlier)
    stored = load_file(out / "model.safetensors")
    assert phases.count("export") > len(load_model(out, dtype=torch.float32).state_dict()), "the run says at each tensor that it gets on"
    vision = {name: tensor for name, tensor in reference_pieces().items() if name.startswith(("vision_tower.", "multi_modal_projector."))}
    assert all(torch.equal(stored[name], tensor) for name, tensor in vision.items())
    assert {tensor.dtype for name, tensor in stored.items() if name not in vision} == {torch.float32}  # the type of the run

    loader: Any = Mistral3ForConditionalGeneration
    theirs, info = loader.from_pretrained(out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    ids_t = some_ids(vocab_size=400)
    with torch.no_grad():
        logits = theirs.eval()(input_ids=ids_t[None], use_cache=False).logits[0]
    ours = load_model(out, dtype=torch.float32)
    assert relative_error(logits, our_logits(ours, ids_t)) < 1e-4  # fp32, other orders of sums
    before = load_model(folder / base, dtype=torch.float32)
    assert relative_error(our_logits(ours, ids_t), our_logits(before, ids_t)) > 1e-2, "it was trained"
    assert (out / "processor_config.json").read_text() == '{"image": 1}'
    assert (out / "tekken.json").read_bytes() == (folder / base / "tekken.json").read_bytes()


def test_fp8_scales_of_the_base_lie_beside_the_tuned_weights(folder: Path) -> None:
    out = tuned(folder, "native-fp8")
    base = open_checkpoint(folder / "native-fp8")
    found = find_scales(out, base.config)
    for name, scales in found.items():
        stored = base.weight_scale(base.pieces()[name])
        assert stored is not None
        assert torch.equal(scales.weight, stored)
    assert len(found) == 2 * (5 + 3 + 8 * 3)  # per layer: attention, shared expert, eight routed experts
    assert not (tuned(folder, "hf") / "fp8_scales.json").exists()


def test_a_tuned_model_becomes_fp8_again_with_the_scales_of_its_base(folder: Path) -> None:
    out = tuned(folder, "native-fp8")
    convert(out, folder / "served", to="native-fp8", dtype="bfloat16", progress=None)
    base, tuned_files, served = (open_checkpoint(path) for path in (folder / "native-fp8", out, folder / "served"))
    assert served.layout == base.layout
    changed = 0
    for piece in base.pieces().values():
        scale, kept = base.weight_scale(piece), served.weight_scale(piece)
        if scale is None:
            continue
        assert kept is not None
        assert torch.equal(kept, scale)
        before, values, after = base.read_piece(piece), tuned_files.read_piece(piece), served.read_piece(piece)
        assert isinstance(before, Fp8Weight)
        assert isinstance(values, torch.Tensor)
        assert isinstance(after, Fp8Weight)
        quotient = values / scale.float()
        assert torch.equal(after.codes, quotient.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)), piece.name
        changed += int((before.codes != after.codes).sum())
    assert changed > 0, "training moved codes"


def test_a_run_that_is_finished_may_write_its_result_again(folder: Path) -> None:
    out = tuned(folder, "native-fp8")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "model.safetensors").write_bytes(b"damaged")
    tuned(folder, "native-fp8", tracking={"console": False})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_an_adapter_names_its_base_by_fingerprint(folder: Path) -> None:
    base = write_layout(folder, "nvfp4")
    out = sft.run(sft_run(folder, "lora", model={"path": str(base.folder)}, adapter={"r": 2}, training={"max_steps": 1}))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.folder)
    for same in (base.folder, base.meaning):
        run = sft_run(folder, "lora2", model={"path": str(same)}, adapter={"init_from": str(out)}, training={"max_steps": 1})
        assert sft.run(run, dry_run=True) == folder / "lora2"


@pytest.mark.parametrize("adapter", [{"r": 4, "init_lora_weights": "pissa"}, {"r": 2, "preset": "all", "modules_to_save": ["lm_head"]}])
def test_an_adapter_belongs_to_the_untouched_base(folder: Path, adapter: dict[str, Any]) -> None:
    """Loaded on the base from disk it gives the logits of the model that was trained, also where training changed the base in memory."""
    from ms4_train.adapters import load_adapter

    base = write_layout(folder, "hf").folder
    config = sft_run(folder, f"adapter-{adapter.get('preset')}", model={"path": str(base)}, training={"max_steps": 2}, adapter=adapter)
    kept: list[Any] = []
    whole = sft.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "export", lambda plan, engine: kept.append(plan.model) or whole(plan, engine))
        out = sft.run(config)
    model = load_model(base, dtype=torch.float32)
    untrained = our_logits(model, some_ids(vocab_size=400))
    section = load_adapter(model, out, base_fingerprint=None)
    assert section.r == (8 if "init_lora_weights" in adapter else 2)
    expected = our_logits(kept[0].eval(), some_ids(vocab_size=400))
    assert relative_error(our_logits(model, some_ids(vocab_size=400)), expected) < 1e-4
    assert relative_error(untrained, expected) > 1e-3
