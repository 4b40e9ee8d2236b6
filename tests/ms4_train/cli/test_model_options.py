"""The tokenizer, limit and engine that the options of ``ms4 generate`` and ``ms4 chat`` name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.every_layout import write_layout

from ms4_train.cli.model_options import Dtype, load_engine, open_model
from ms4_train.errors import AdapterError, TokenizerError, WeightsError
from ms4_train.model.quantised import is_quantised


def test_a_model_gives_its_tokenizer_and_limit(tmp_path: Path) -> None:
    written = write_layout(tmp_path, "nvfp4")
    tokenizer, limit = open_model(written.folder, None, None)
    assert tokenizer.path == written.folder / "tekken.json"
    assert limit == 1048576
    other = written.meaning / "tekken.json"
    assert open_model(written.folder, None, other)[0].path == other
    with pytest.raises(AdapterError, match="is not a folder"):
        open_model(written.folder, tmp_path / "none", None)
    with pytest.raises(WeightsError, match="is not a folder"):
        open_model(tmp_path / "none", None, None)
    (written.folder / "tekken.json").unlink()
    with pytest.raises(TokenizerError, match=r"holds no tekken\.json"):
        open_model(written.folder, None, None)


@pytest.mark.parametrize("keep", [False, True])
def test_weights_are_kept_quantised_on_request(tmp_path: Path, keep: bool, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_layout(tmp_path, "both")
    tokenizer, _ = open_model(written.folder, None, None)
    engine = load_engine(written.folder, None, tokenizer, Dtype.bfloat16, keep_quantised=keep)
    assert is_quantised(engine.model) == keep
    assert next(engine.model.parameters()).dtype == torch.bfloat16
    assert ("kept quantised" if keep else "dequantised to bfloat16") in capsys.readouterr().err
