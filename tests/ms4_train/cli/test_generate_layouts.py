"""``ms4 generate`` and ``ms4 chat`` on every public layout: the answers of a bf16 folder with the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.every_layout import NAMES, QUANTISED, Written, write_layout
from typer.testing import CliRunner, Result

from ms4_train.cli.main import app
from ms4_train.errors import TokenizerError

QUESTION = "7*3+8 mod 10 ="


def run(*arguments: object, text: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def answers(folder: Path, *options: str) -> list[dict[str, Any]]:
    result = run("generate", folder, QUESTION, "--both-modes", "--json", "--temperature", "0", "--max-tokens", 24, *options)
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in result.stdout.splitlines()]


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_layout(tmp_path_factory.mktemp("layouts"), request.param)


def test_generate_answers_as_the_bf16_files_do(written: Written) -> None:
    """In bf16 both have the same values, so greedy tokens are the same ones."""
    expected = answers(written.meaning, "--dtype", "bfloat16")
    assert answers(written.folder, "--dtype", "bfloat16") == expected
    assert len(expected) == 2
    if written.folder.name in QUANTISED:
        assert answers(written.folder, "--dtype", "bfloat16", "--keep-quantised") == expected


def test_how_quantised_weights_are_held_is_said_on_standard_error(written: Written) -> None:
    arguments = ("generate", written.folder, QUESTION, "--json", "--max-tokens", 2)
    word = QUANTISED.get(written.folder.name)
    if word is None:
        assert "base weights" not in run(*arguments).stderr
        assert "base weights" not in run(*arguments, "--keep-quantised").stderr
    else:
        assert f"base weights: {word}, dequantised to float32: " in run(*arguments).stderr
        assert f"base weights: {word}, kept quantised: " in run(*arguments, "--keep-quantised").stderr


def test_chat_takes_it_too(written: Written) -> None:
    for options in ((), ("--keep-quantised",)):
        result = run("chat", written.folder, "--max-tokens", 6, *options, text="hi\n")
        assert result.exit_code == 0
        assert result.stderr.count("prompt tokens") == 1


def test_a_missing_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    written = write_layout(tmp_path, "native")
    tekken = (written.folder / "tekken.json").rename(tmp_path / "tekken.json")
    error = CliRunner().invoke(app, ["generate", str(written.folder), QUESTION]).exception
    assert isinstance(error, TokenizerError)
    assert str(error).startswith(f"{written.folder}: holds no tekken.json.")
    assert "--tokenizer" in str(error)
    run("generate", written.folder, QUESTION, "--max-tokens", 2, "--tokenizer", tekken)
