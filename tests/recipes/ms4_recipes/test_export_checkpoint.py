"""A model or adapter out of run state equals, file by file and bit by bit, what the run itself wrote at that step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.every_layout import write_layout
from support.sft_files import sft_run, write_files

from ms4_recipes import sft
from ms4_recipes.export_checkpoint import export_checkpoint
from ms4_train.errors import CheckpointError

TRAINING = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_a_proj", "o_proj"], "modules_to_save": ["lm_head"]}
STACKS = {"r": 2, "target_modules": ["kv_b_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.gate.weight"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("runs"), rows=20)


def trained(folder: Path, name: str, **sections: Any) -> Path:
    """A run's folder. The fixture's files stay; what it writes is new."""
    config = sft_run(folder, name, **{"training": TRAINING, **sections})
    sft.run(config)
    return Path(config.output_dir)


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-000002"


def assert_same_files(left: Path, right: Path) -> None:
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_fine_tune(folder, tmp_path, dtype):
    run = trained(folder, f"full {dtype}", model={"dtype": dtype})
    done = export_checkpoint(newest(run), tmp_path / "out")
    assert (done.kind, done.step) == ("model", 2)
    assert_same_files(run / "model", tmp_path / "out")
    # The step before is another model: it is the checkpoint that is written.
    export_checkpoint(run / "checkpoints" / "step-000001", tmp_path / "before")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "out"))
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.equal(before["model.layers.0.mlp.gate.weight"], after["model.layers.0.mlp.gate.weight"]), "the router was not trained"


@pytest.mark.parametrize("adapter", [LORA, STACKS, {**LORA, "init_lora_weights": "pissa"}], ids=["lora", "stacks", "pissa"])
def test_an_adapter(folder, tmp_path, adapter):
    run = trained(folder, f"adapter {len(adapter)} {adapter['r']}", adapter=adapter, model={"dtype": "bfloat16"})
    done = export_checkpoint(newest(run), tmp_path / "out")
    assert (done.kind, done.step) == ("adapter", 2)
    assert_same_files(run / "adapter", tmp_path / "out")


@pytest.mark.slow
def test_an_adapter_that_went_on(folder, tmp_path):
    first = trained(folder, "first", adapter=LORA)
    run = trained(folder, "second", adapter={"init_from": str(first / "adapter")})
    export_checkpoint(newest(run), tmp_path / "out")
    assert_same_files(run / "adapter", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("base", ["hf", "native-fp8"])
@pytest.mark.parametrize("vision", ["auto", "skip"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_bases_with_vision_and_codes(folder, tmp_path, base, vision, adapter):
    written = write_layout(tmp_path, base).folder
    run = trained(folder, f"{base} {vision} {adapter is None}", model={"path": str(written), "vision": vision}, adapter=adapter)
    export_checkpoint(newest(run), tmp_path / "out")
    assert_same_files(run / ("model" if adapter is None else "adapter"), tmp_path / "out")


def test_a_base_that_moved(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "base")
    run = trained(folder, "moved", model={"path": str(tmp_path / "base")})
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="--base"):
        export_checkpoint(newest(run), tmp_path / "out")
    export_checkpoint(newest(run), tmp_path / "out", base=tmp_path / "elsewhere")
    assert_same_files(run / "model", tmp_path / "out")


@pytest.fixture(scope="module")
def small_run(folder):
    return trained(folder, "small", adapter={"r": 2, "target_modules": ["o_proj"]})


def test_another_base_is_refused(folder, small_run, tmp_path):
    from support.models import tiny_config, tiny_model

    from ms4_train.weights import save_model

    config = tiny_config(vocab_size=json.loads((folder / "base" / "config.json").read_text())["vocab_size"])
    save_model(tiny_model(config, seed=2).state_dict(), tmp_path / "other", config=config)
    with pytest.raises(CheckpointError, match="not the base model that the run was trained with"):
        export_checkpoint(newest(small_run), tmp_path / "out", base=tmp_path / "other")
    with pytest.raises(CheckpointError, match="--base: there is no such folder"):
        export_checkpoint(newest(small_run), tmp_path / "out", base=tmp_path / "absent")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(small_run, tmp_path):
    damaged = tmp_path / "step-000002"
    shutil.copytree(newest(small_run), damaged)
    path = next(damaged.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        export_checkpoint(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_in_the_way_are_kept(small_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="holds files already"):
        export_checkpoint(newest(small_run), tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()
    export_checkpoint(newest(small_run), tmp_path / "out")
    assert_same_files(small_run / "adapter", tmp_path / "out")
