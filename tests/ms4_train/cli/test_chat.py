"""``ms4 chat`` from the outside: lines typed to it, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import tiny_config, tiny_model
from support.tokenizers import TINY_RANKS, tiny_tokenizer, tokenizer_file
from typer.testing import CliRunner, Result

from ms4_train.cli.main import app
from ms4_train.errors import MS4Error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ms4_train.weights import save_model

    path = tmp_path_factory.mktemp("chat") / "model"
    model = tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, max_position_embeddings=512))
    save_model(model.state_dict(), path, config=model.config, tokenizer_file=tokenizer_file(TINY_RANKS))
    return path


def run(folder: Path, text: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["chat", str(folder), *map(str, arguments)], input=text, catch_exceptions=True)


def test_each_line_is_answered_until_quit_or_the_end_of_input(folder: Path) -> None:
    result = run(folder, "hi\n/mode high\n/quit\nnot read\n", "--max-tokens", 6)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("prompt tokens") == 1
    assert "mode high" in result.stderr
    assert run(folder, "hi\n", "--max-tokens", 6).exit_code == 0


def test_a_conversation_is_saved_with_its_options(folder: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    file = tmp_path / "chat.jsonl"
    options = ("--system", "Be brief.", "--tools", tmp_path / "tools.json", "--max-tokens", 6, "--max-context", 500)
    result = run(folder, f"hi\nho\n/undo\n/save {file}\n/undo\n/save {file}\n", *options)
    assert result.exit_code == 0, result.output
    assert "nothing to save" in result.stderr
    row = json.loads(file.read_text())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["tools"] == [tool]


def test_a_turn_past_the_limit_is_an_error_of_that_turn(folder: Path) -> None:
    result = run(folder, f"{'word ' * 40}\nhi\n", "--max-tokens", 6, "--max-context", 50)
    assert result.exit_code == 0, result.output
    assert "the model's limit is 50" in result.stderr
    assert result.stderr.count("prompt tokens") == 1


def test_bad_files_end_the_program_before_weights_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.weights.load_model", lambda *_, **__: pytest.fail("minutes of loading came before the check"))
    (tmp_path / "tools.json").write_text("[{}]")
    assert isinstance(run(folder, "", "--tools", tmp_path / "tools.json").exception, MS4Error)
    assert isinstance(run(folder, "", "--thinking-budget", -1).exception, MS4Error | SystemExit)


def test_help_shows_examples(folder: Path) -> None:
    result = CliRunner().invoke(app, ["chat", "--help"])
    assert result.exit_code == 0
    assert "ms4 chat" in result.output
