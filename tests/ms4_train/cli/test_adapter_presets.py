"""``ms4 adapter presets`` reads a configuration and prints each preset's targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import saved_tiny
from typer.testing import CliRunner

from ms4_train.cli.adapter import app
from ms4_train.errors import WeightsError


def test_presets_of_a_text_model_without_its_weights(tmp_path: Path) -> None:
    saved_tiny(tmp_path)
    result = CliRunner().invoke(app, ["presets", str(tmp_path), "--rank", "2"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]
    assert "attention q_a_proj 2 352" in lines  # 2 layers x rank 2 x (64 + 24)
    assert any(line.startswith("language as attention+experts 20 ") for line in lines)
    assert any(line.startswith("vision cannot be used") for line in lines)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        raise CliRunner().invoke(app, ["presets", str(tmp_path / "none")]).exception or AssertionError
