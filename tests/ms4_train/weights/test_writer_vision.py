"""What a written model takes along from its base: vision weights bit for bit, and a folder that transformers loads as multimodal.

Vision that was trained, and vision without a base: ``test_writer_multimodal.py``.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import our_logits, relative_error, some_ids
from support.layouts import both_folder, hf_folder, hf_fp8_folder, native_folder, native_fp8_folder, nvfp4_folder, reference_pieces

from ms4_train.errors import UntrustedInputError, WeightsError
from ms4_train.weights import folder, load_model, open_checkpoint, save_model, writer
from ms4_train.weights.convert import convert
from ms4_train.weights.reading.loading import VisionChoice
from ms4_train.weights.scales_file import find_scales

BASES = {
    "hf": hf_folder,
    "hf, transformers' names": lambda path: hf_folder(path, style="transformers"),
    "native": native_folder,
    "native in shards": lambda path: native_folder(path, shards=3),
    "hf-fp8": hf_fp8_folder,
    "native-fp8": native_fp8_folder,
    "both": both_folder,
    "nvfp4": nvfp4_folder,
}


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("read", ["auto", "skip"])
@pytest.mark.parametrize("name", BASES)
def test_vision_goes_along_from_every_layout(tmp_path: Path, name: str, read: VisionChoice) -> None:
    """Compared with the pieces that the base's files were made of, and with transformers' own loading and logits."""
    from transformers import Mistral3ForConditionalGeneration

    BASES[name](tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.float32, vision=read)
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"), max_shard_bytes=200_000)
    written = stored_tensors(tmp_path / "out")
    vision = {key: tensor for key, tensor in reference_pieces().items() if key.startswith(("vision_tower.", "multi_modal_projector."))}
    assert len(vision) == 24
    for key, tensor in vision.items():
        assert written[key].dtype == torch.bfloat16
        assert torch.equal(written[key], tensor), key
    others = {key for key in written if key not in vision}
    assert others == {f"language_model.{key}" for key in model.state_dict() if key not in vision}

    loader: Any = Mistral3ForConditionalGeneration
    theirs, info = loader.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = theirs.eval()(input_ids=some_ids()[None], use_cache=False).logits[0]
    assert relative_error(logits, our_logits(model)) < 1e-4  # fp32, other orders of sums
    again = load_model(tmp_path / "out", dtype=torch.float32, vision=read)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_the_configuration_is_multimodal_and_a_text_base_gives_a_text_folder(tmp_path: Path) -> None:
    for name, vision in (("seeing", True), ("blind", False)):
        native_folder(tmp_path / name, vision=vision)
        model = load_model(tmp_path / name, dtype=torch.float32)
        save_model(model.state_dict(), tmp_path / f"{name}-out", config=model.config, base=open_checkpoint(tmp_path / name))
    content = json.loads((tmp_path / "seeing-out" / "config.json").read_text())
    assert content["architectures"] == ["Mistral3ForConditionalGeneration"]
    assert (content["model_type"], content["text_config"]["model_type"]) == ("mistral3", "mistral4")
    assert open_checkpoint(tmp_path / "seeing-out").config.vision == open_checkpoint(tmp_path / "seeing").config.vision
    content = json.loads((tmp_path / "blind-out" / "config.json").read_text())
    assert content["architectures"] == ["Mistral4ForCausalLM"]
    assert set(stored_tensors(tmp_path / "blind-out")) == set(model.state_dict())


def test_vision_is_read_when_its_shard_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a shard is in memory: reads and writes take turns."""
    hf_folder(tmp_path / "base")
    base, limit = open_checkpoint(tmp_path / "base"), 30_000
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    held = [0]
    read, save = base.read_piece, writer.save_file

    def counted_read(piece: Any, rows: Any = None) -> Any:
        tensor: Any = read(piece, rows)
        held[-1] += tensor.nbytes
        return tensor

    def counted_save(tensors: dict[str, torch.Tensor], path: Path, **keys: Any) -> None:
        save(tensors, path, **keys)
        held.append(0)

    monkeypatch.setattr(base, "read_piece", counted_read)
    monkeypatch.setattr(writer, "save_file", counted_save)
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=base, max_shard_bytes=limit)
    vision_bytes = sum(tensor.nbytes for key, tensor in reference_pieces().items() if key.startswith(("vision_", "multi_")))
    assert sum(held) == vision_bytes > 2 * limit
    assert max(held) <= limit + 2 * 32 * 3 * 14 * 14  # a shard, and the tensor that did not fit into it


def test_vision_counts_in_the_space_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(folder, "require_free_bytes", lambda path, needed: asked.append(needed))
    hf_folder(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.bfloat16, vision="skip")
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    tensors = sum(tensor.nbytes for tensor in stored_tensors(tmp_path / "out").values())
    files = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert [tensors <= needed - folder.MARGIN_BYTES <= files for needed in asked] == [True]


def test_a_base_of_another_width_is_refused(tmp_path: Path) -> None:
    """Its projector could not speak to this text network."""
    from support.models import tiny_config, tiny_model

    hf_folder(tmp_path / "base")
    model = tiny_model(tiny_config(hidden_size=32))
    with pytest.raises(WeightsError, match="hidden_size"):
        save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_sums_are_those_of_every_file(tmp_path: Path) -> None:
    native_folder(tmp_path / "base", tokenizer=True)
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    base = open_checkpoint(tmp_path / "base")
    for shards in (1 << 30, 100_000):
        tokenizer = tmp_path / "base" / "tekken.json"
        save_model(
            model.state_dict(), tmp_path / "out", config=model.config, base=base, tokenizer_file=tokenizer, max_shard_bytes=shards
        )  # the second time over the first
        checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        named = {line.split("  ")[1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()}
        assert named == {path.name for path in (tmp_path / "out").iterdir()} - {"SHA256SUMS"}
    (first, *_) = sorted((tmp_path / "out").glob("model-*"))
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    assert hashlib.sha256(damaged).hexdigest() not in (tmp_path / "out" / "SHA256SUMS").read_text()
    assert subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, check=False).returncode == 1


def base_with_companions(folder: Path, **options: Any) -> None:
    native_fp8_folder(folder, tokenizer=True, **options)
    (folder / "processor_config.json").write_text('{"image": 1}')
    (folder / "tokenizer.json").write_text('{"the": "same"}')
    (folder / "LICENSE").write_text("Apache")
    (folder / "README.md").write_text("a card of another model")


def test_companions_and_fp8_scales_go_along(tmp_path: Path) -> None:
    base_with_companions(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=base)
    same = ("processor_config.json", "tokenizer.json", "LICENSE", "SYSTEM_PROMPT.txt", "tekken.json")
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes() for name in same)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *same,
        *("model.safetensors", "config.json", "generation_config.json", "fp8_scales.json", "SHA256SUMS"),
    }
    kept = find_scales(tmp_path / "out", base.config)
    stored = stored_tensors(tmp_path / "base")
    name = "layers.1.experts.3.w2"
    piece = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert torch.equal(kept[piece].weight, stored[f"{name}.qscale_weight"])
    activation = kept[piece].activation
    assert activation is not None
    assert torch.equal(activation, stored[f"{name}.qscale_act"])
    assert len(kept) == sum(key.endswith("qscale_weight") for key in stored)
    # A model made of this one still has them.
    save_model(model.state_dict(), tmp_path / "again", config=model.config, base=open_checkpoint(tmp_path / "out"))
    assert (tmp_path / "again" / "fp8_scales.json").read_bytes() == (tmp_path / "out" / "fp8_scales.json").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_was_not_trained_converts_back_to_the_same_fp8_files(tmp_path: Path, dtype: torch.dtype) -> None:
    """From native FP8 through a model in memory and this writer, and back with the scales that went along: every tensor bit for bit."""
    base_with_companions(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=dtype)
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    convert(tmp_path / "out", tmp_path / "again", to="native-fp8", dtype="bfloat16", progress=None)
    before, after = stored_tensors(tmp_path / "base"), stored_tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8)), name


def test_another_tokenizer_leaves_the_other_forms_of_the_old_one_behind(tmp_path: Path) -> None:
    base_with_companions(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    other = tmp_path / "tekken.json"
    other.write_bytes((tmp_path / "base" / "tekken.json").read_bytes() + b" ")
    base = open_checkpoint(tmp_path / "base")
    save_model(model.state_dict(), tmp_path / "out", config=model.config, base=base, tokenizer_file=other)
    assert (tmp_path / "out" / "tekken.json").read_bytes() == other.read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "processor_config.json").exists()


def test_a_companion_that_is_no_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    base_with_companions(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").symlink_to("nowhere")
    model = load_model(tmp_path / "base", dtype=torch.bfloat16)
    with pytest.raises(UntrustedInputError, match=r"chat_template\.jinja"):
        save_model(model.state_dict(), tmp_path / "out", config=model.config, base=open_checkpoint(tmp_path / "base"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
