"""axolotl's four examples, translated, run: the whole tiny model with its vision, text and image rows, a few steps each.

Only what a tiny model needs is overridden: paths, type, lengths, and a share of the rows to validate on that is not empty.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.axolotl_files import EXPERTS, write_axolotl
from support.layouts import hf_folder, nvfp4_folder
from support.layouts_pieces import TINY
from support.sft_files import metrics, write_rows
from typer.testing import CliRunner

from ms4_recipes import sft
from ms4_train.cli.main import app
from ms4_train.config import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in BF16 and one in NVFP4, both with vision; rows with and without images."""
    path = tmp_path_factory.mktemp("axolotl")
    tiny = dataclasses.replace(TINY, image_size=1540)  # as large as the tokenizer lets images be
    hf_folder(path / "fft", tokenizer=True, tiny=tiny)
    nvfp4_folder(path / "qlora", tokenizer=True, tiny=tiny)
    write_rows(path / "text.jsonl", 40, seed=1)
    generator, lines = random.Random(2), []
    for number in range(24):
        colour = tuple(generator.randrange(256) for _ in range(3))
        buffer = io.BytesIO()
        Image.new("RGB", (generator.randrange(20, 80), generator.randrange(20, 80)), colour).save(buffer, "PNG")
        (path / f"{number}.png").write_bytes(buffer.getvalue())
        asked = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "red?"}]
        answer = "yes" if colour[0] == max(colour) else "no"
        lines.append(json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}) + "\n")
    (path / "vision.jsonl").write_text("".join(lines))
    return path


def run_translated(folder: Path, name: str, extra: str = "") -> Path:
    """Translate by the command, write the run file, train two steps; returns the folder of the result."""
    method, rows = name.split("-")
    output = name + ("-experts" if extra else "")
    source, run = write_axolotl(folder, name, extra), folder / f"{output}.yaml"
    result = CliRunner().invoke(app, ["config", "import-axolotl", str(source), "--out", str(run)])
    assert result.exit_code == 0, result.output
    overrides = {
        "output_dir": folder / output,
        "model.path": folder / method,
        "model.dtype": "float32",
        "data.train.0.path": folder / f"{rows}.jsonl",
        "data.validation_fraction": 0.2,
        "data.max_length": 160,
        "training.max_steps": 2,
        "tracking.console": "false",
        "tracking.peak_flops": "1e9",
    }
    torch.manual_seed(0)
    return sft.run(load_run(run, [f"{key}={value}" for key, value in overrides.items()]))


def check_losses(folder: Path, output: str) -> None:
    losses = metrics(folder, output)
    assert list(losses) == [1, 2]
    assert all(0 < loss < 20 for loss in losses.values())
    assert list(metrics(folder, output, "eval_loss")) == [2]


@pytest.mark.parametrize(("name", "extra"), [("qlora-text", ""), ("qlora-text", EXPERTS), ("qlora-vision", "")])
def test_adapter_examples_run_on_a_frozen_nvfp4_base(folder: Path, name: str, extra: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = run_translated(folder, name, extra)
    check_losses(folder, written.parent.name)
    assert "NVFP4, kept quantised" in capsys.readouterr().out
    names = set(load_file(written / "adapter_model.safetensors"))
    assert any("self_attn.o_proj.lora_B" in tensor for tensor in names)
    assert any(".mlp.experts." in tensor for tensor in names) == bool(extra)
    assert not [tensor for tensor in names if "vision" in tensor or "q_a_proj" in tensor]


@pytest.mark.parametrize(("name", "trains_vision"), [("fft-text", False), ("fft-vision", True)])
def test_full_examples_run(folder: Path, name: str, trains_vision: bool) -> None:
    """What ``unfrozen_parameters`` says is what changes: the text network alone, or everything."""
    written = run_translated(folder, name)
    check_losses(folder, name)
    before, after = load_file(folder / "fft" / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    vision = {key for key in before if "vision_tower" in key or "multi_modal_projector" in key}
    assert bool(vision & changed) == trains_vision
    assert {key for key in before if "mlp.gate.weight" in key} <= changed
