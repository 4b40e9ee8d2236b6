"""``ms4 train`` takes every public layout: dry runs, and a step of each kind of training on the folder with two families of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.every_layout import NAMES, QUANTISED, write_layout
from support.sft_files import metrics, sft_run, write_rows

from ms4_train.cli.main import main
from ms4_train.config import to_yaml

LORA = {"r": 2, "target_modules": ATTENTION + SHARED, "target_parameters": STACKS}


def ms4_train(folder: Path, base: Path, *arguments: str, **sections: Any) -> int:
    model = {"path": str(base), **sections.pop("model", {})}
    (folder / "run.yaml").write_text(to_yaml(sft_run(folder, model=model, **sections)))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(folder / "run.yaml"), *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "a.jsonl", 30, seed=1)
    write_rows(tmp_path / "b.jsonl", 15, seed=2)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_dry_runs_say_what_would_be_trained(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_layout(folder, name).folder
    text_only = {"model": {"vision": "skip"}}
    assert ms4_train(folder, base, "--dry-run", training={"train_router": True}, **text_only) == 0
    full = capsys.readouterr().out
    assert ms4_train(folder, base, "--dry-run", adapter=LORA, **text_only) == 0
    lora = capsys.readouterr().out
    own, everything = trained_parameters(lora)
    assert trained_parameters(full) == (everything - own, everything - own), "quantised weights count as parameters"
    if name in QUANTISED:
        assert all(f"\nbase weights: {QUANTISED[name]}, " in f"\n{text}" for text in (full, lora))
        assert "kept quantised" in lora
        assert "dequantised to float32" in full
    else:
        assert all("base weights:" not in text and "\ntrained parameters:" in f"\n{text}" for text in (full, lora))


def trained_parameters(shown: str) -> tuple[int, int]:
    """(trained, all) of the line ``1,234 of 5,678 parameters (...)``."""
    (line,) = [line for line in shown.splitlines() if " of " in line and "%)" in line and "parameters" in line]
    words = line.split()
    return int(words[0].replace(",", "")), int(words[2].replace(",", ""))


def test_the_key_can_be_given_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_layout(folder, "both").folder
    assert ms4_train(folder, base, "--dry-run", "model.dequantize=true", adapter=LORA) == 0
    assert "dequantised to float32" in capsys.readouterr().out
    assert ms4_train(folder, base, "--dry-run", "model.dequantize=false") == 2
    assert "model.dequantize: is false" in capsys.readouterr().err
    assert ms4_train(folder, base, "training.max_steps=1", adapter=LORA) == 0
    assert list(metrics(folder)) == [1]
