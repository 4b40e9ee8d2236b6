"""``ms4 eval`` on every public layout: the answers of a bf16 folder with the same values, and one identity for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.eval_files import eval_run, stored_texts
from support.every_layout import NAMES, QUANTISED, write_layout

from ms4_evals.clients.embedded import load_model_under_test
from ms4_recipes import evaluate
from ms4_train.config.schema import ModelSection
from ms4_train.errors import TokenizerError

ONE_TASK = [{"task": "arithmetic", "kind": "digits", "problems": 2, "samples": 1}]


def samples(store: Path) -> list[tuple[str, str]]:
    (texts,) = stored_texts(store).values()
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_evaluated_and_goes_on_with_the_other_s_samples(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_layout(tmp_path, name)
    model: dict[str, Any] = {"path": str(written.folder), "dtype": "bfloat16"}
    evaluate.run(eval_run(written.folder, tmp_path / "r.sqlite", tasks=ONE_TASK, model=model))
    shown = capsys.readouterr().out
    assert "4 samples drawn" in shown
    assert (f"base weights: {QUANTISED[name]}, dequantised to bfloat16: " if name in QUANTISED else "drawn") in shown
    meaning = {"path": str(written.meaning), "dtype": "bfloat16"}
    evaluate.run(eval_run(written.folder, tmp_path / "meaning.sqlite", tasks=ONE_TASK, model=meaning))
    assert samples(tmp_path / "r.sqlite") == samples(tmp_path / "meaning.sqlite")
    capsys.readouterr()
    # The same values are the same model: kept quantised, or converted, it finds its samples in the store.
    for section in ({**model, "dequantize": False}, meaning):
        report = evaluate.run(eval_run(written.folder, tmp_path / "r.sqlite", tasks=ONE_TASK, model=section))
        assert "0 samples drawn, 4 taken from the store" in capsys.readouterr().out
    assert json.loads(report.read_text())["complete"]


@pytest.mark.parametrize("name", QUANTISED)
def test_kept_quantised_it_gives_the_same_answers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_layout(tmp_path, name)
    for store, dequantize in (("wide", None), ("kept", False)):
        section = {"path": str(written.folder), "dtype": "bfloat16", "dequantize": dequantize}
        evaluate.run(eval_run(written.folder, tmp_path / f"{store}.sqlite", tasks=ONE_TASK, model=section))
    assert f"base weights: {QUANTISED[name]}, kept quantised: " in capsys.readouterr().out
    assert samples(tmp_path / "kept.sqlite") == samples(tmp_path / "wide.sqlite")


def test_in_float32_a_quantised_model_is_not_its_bf16_conversion(tmp_path: Path) -> None:
    """Their fingerprints agree, but bf16 rounded the values of the one."""
    written = write_layout(tmp_path, "native-fp8")

    def identity(folder: Path, dtype: Any) -> dict[str, Any]:
        return load_model_under_test(ModelSection(path=str(folder), dtype=dtype))[2]

    assert identity(written.folder, "bfloat16") == identity(written.meaning, "bfloat16")
    assert identity(written.folder, "float32") == {**identity(written.meaning, "float32"), "encoding": "fp8"}


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    written = write_layout(tmp_path, "native-fp8")
    (written.folder / "tekken.json").unlink()
    with pytest.raises(TokenizerError, match=r"holds no tekken\.json.*model\.tokenizer"):
        evaluate.run(eval_run(written.folder, tmp_path / "r.sqlite"))
