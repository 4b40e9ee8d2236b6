"""Rows with images through the whole recipe: trained on, evaluated, resumed; and refused for a model that cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.image_rows import broken_png, mixed_file
from support.models import tiny_config
from support.multimodal import tiny_multimodal, tiny_vision
from support.sft_files import TINY_RANKS, metrics, sft_run, write_files
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_recipes import sft
from ms4_train.adapters import load_adapter
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError, DataError, TrainingError
from ms4_train.weights import base_fingerprint, load_model, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with eyes and 24 rows, every other one with images."""
    folder = tmp_path_factory.mktemp("seeing")
    config, vision = tiny_config(vocab_size=tiny_tokenizer(TINY_RANKS).vocab_size), tiny_vision()
    model = tiny_multimodal(config, vision)
    save_model(model.state_dict(), folder / "base", config=config, vision=vision, tokenizer_file=tokenizer_file(TINY_RANKS))
    mixed_file(folder, 24)
    return folder


def run_of(folder: Path, output: str, **training: object) -> SftRun:
    data = {"train": [{"path": str(folder / "rows.jsonl")}], "max_length": 120, "validation_fraction": 0.2, "images": {"workers": 1}}
    return sft_run(folder, output, data=data, training={"eval_strategy": "steps", "eval_steps": 2, "eval_max_rows": 6, **training})


def test_vision_is_trained_and_a_resumed_run_has_the_same_losses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft.run(run_of(folder, "whole", max_steps=4))
    assert "images: " in capsys.readouterr().out
    losses, held_out = metrics(folder, "whole"), metrics(folder, "whole", "eval_loss")
    assert losses.keys() == {1, 2, 3, 4}
    assert held_out.keys() == {2, 4}
    assert losses[4] < losses[1]
    before, after = (load_file(path / "model.safetensors") for path in (folder / "base", folder / "whole" / "model"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    # The look-ahead of the first half must leave no trace in the saved position. The rate is that of the step alone.
    constant = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    sft.run(run_of(folder, "straight", max_steps=4, **constant))
    sft.run(run_of(folder, "halves", max_steps=2, **constant))
    sft.run(run_of(folder, "halves", max_steps=4, **constant))
    assert metrics(folder, "halves") == metrics(folder, "straight")
    assert metrics(folder, "halves", "eval_loss") == metrics(folder, "straight", "eval_loss")


def test_a_broken_image_stops_the_run_before_the_model_is_read(folder: Path) -> None:
    picture = folder / "pictures" / "20.png"
    whole = picture.read_bytes()
    picture.write_bytes(broken_png())
    try:
        with pytest.raises(DataError, match=r"rows\.jsonl:3: bad-image"):
            sft.run(run_of(folder, "broken", max_steps=1))
    finally:
        picture.write_bytes(whole)


def test_a_model_without_eyes_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    write_files(tmp_path, rows=2)
    config = run_of(folder, "blind", max_steps=1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "base")})})
    with pytest.raises(TrainingError, match="no vision tower"):
        sft.run(config, dry_run=True)


def test_an_adapter_on_the_vision_alone_survives_steps_without_images(folder: Path, tmp_path: Path) -> None:
    """Rows of one document each, so that some steps hold text only: their gradient is zero. Without any image nothing could be learned."""
    data = {
        "train": [{"path": str(folder / "rows.jsonl")}],
        "max_length": 120,
        "packing": False,
        "shuffle": False,
        "images": {"workers": 1},
    }
    adapter = {"r": 2, "preset": "vision"}
    sft.run(sft_run(folder, "eyes", data=data, adapter=adapter, training={"max_steps": 4}))
    norms = metrics(folder, "eyes", "grad_norm").values()
    assert min(norms) == 0
    assert max(norms) > 0
    text = tmp_path / "text.jsonl"
    text.write_text("".join(line for line in (folder / "rows.jsonl").read_text().splitlines(keepends=True) if '"image' not in line))
    alone = sft_run(folder, "in vain", data=data | {"train": [{"path": str(text)}]}, adapter=adapter, training={"max_steps": 2})
    with pytest.raises(ConfigError, match="no training row holds an image"):
        sft.run(alone, dry_run=True)


def test_an_adapter_of_a_run_that_left_the_vision_out_is_named_for_the_whole_model(folder: Path, tmp_path: Path) -> None:
    """PEFT and vLLM load the base with its vision; an adapter with a text model's names would do nothing there, silently."""
    write_files(tmp_path, rows=20)
    data = {"train": [{"path": str(tmp_path / "a.jsonl")}], "max_length": 120}
    model = {"path": str(folder / "base"), "vision": "skip"}
    sft.run(sft_run(folder, "skipped", model=model, data=data, adapter={"r": 2, "preset": "attention"}, training={"max_steps": 1}))
    names = load_file(folder / "skipped" / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    whole = load_model(folder / "base", dtype=torch.float32)
    load_adapter(whole, folder / "skipped" / "adapter", base_fingerprint=base_fingerprint(folder / "base"))


def test_images_that_a_stream_shows_late_are_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.data.preparation.STREAM_SAMPLE_ROWS", 1)
    first_text = folder / "late.jsonl"
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    first_text.write_text("".join(sorted(lines, key=lambda line: '"image' in line)[8:]))
    assert '"image' not in first_text.read_text().splitlines()[0]
    source = {"path": str(first_text), "streaming": True}
    data = {"train": [source], "max_length": 120, "shuffle": False, "images": {"workers": 1}}
    sft.run(sft_run(folder, "late", data=data, training={"max_steps": 4}))
    before, after = (load_file(path / "model.safetensors") for path in (folder / "base", folder / "late" / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before if "vision_tower" in name)
