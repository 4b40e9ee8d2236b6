"""``ms4 data`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.image_rows import broken_png, mixed_file
from support.rows import arithmetic_rows, chat, write_rows
from support.tokenizers import tokenizer_file
from typer.testing import CliRunner

from ms4_train.cli.data import app
from ms4_train.errors import MS4Error

RUNNER = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"})
TOKENIZER = ["--tokenizer", str(tokenizer_file(400))]


def run_file(folder: Path, rows: Path, **data: object) -> Path:
    run = {
        "recipe": "sft",
        "output_dir": str(folder / "out"),
        "model": {"path": "unused", "tokenizer": str(tokenizer_file(400))},
        "data": {"train": [{"path": str(rows)}], **data},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run))
    return path


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [*arithmetic_rows(3), "{broken", {"messages": [{"role": "assistant", "content": "a"}]}])


def test_check_lists_bad_rows_and_exits_with_2(faulty: Path) -> None:
    result = RUNNER.invoke(app, ["check", str(faulty)])
    assert result.exit_code == 2
    assert f"{faulty}:4: bad-json" in result.output
    assert f"{faulty}:5: role-order: messages[0]" in result.output
    assert "5 rows read, 3 good, 2 bad" in result.output


@pytest.mark.parametrize("content", ["", "\n\n"])
@pytest.mark.parametrize("command", ["check", "preview"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str, command: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    result = RUNNER.invoke(app, [command, str(tmp_path / "rows.jsonl"), *TOKENIZER])
    assert isinstance(result.exception, MS4Error)
    assert "rows.jsonl: holds no row" in str(result.exception)


def test_check_says_how_to_mend_a_row(faulty: Path) -> None:
    lines = RUNNER.invoke(app, ["check", str(faulty)]).output.splitlines()
    assert ["Fix: " in line for line in lines if f"{faulty}:" in line][:2] == [True, True]


def test_check_of_good_rows_exits_with_0(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", arithmetic_rows(4))
    result = RUNNER.invoke(app, ["check", str(path), *TOKENIZER])
    assert result.exit_code == 0, result.output
    assert "4 rows read, 4 good, 0 bad, 2 in mode high, 0 overlong" in result.output


def test_check_of_a_run_file_uses_its_limits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat("q", "a"), chat("q", "word " * 100)])
    result = RUNNER.invoke(app, ["check", str(run_file(tmp_path, path, max_length=60))])
    assert result.exit_code == 2
    assert f"{path}:2: overlong" in result.output
    assert "1 good, 0 bad" in result.output


def test_check_writes_faults(faulty: Path, tmp_path: Path) -> None:
    RUNNER.invoke(app, ["check", str(faulty), "--faults", str(tmp_path / "bad.jsonl")])
    assert [json.loads(line)["number"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [4, 5]


def test_mode_is_the_default_of_rows_without_one(tmp_path: Path) -> None:
    row = chat("q", "a", thinking="t")
    del row["reasoning_effort"]
    path = write_rows(tmp_path / "rows.jsonl", [row])
    assert RUNNER.invoke(app, ["check", str(path)]).exit_code == 2
    assert RUNNER.invoke(app, ["check", str(path), "--mode", "high"]).exit_code == 0


def test_preview_shows_rows_and_faults(faulty: Path) -> None:
    result = RUNNER.invoke(app, ["preview", str(faulty), "--rows", "9", *TOKENIZER])
    assert result.exit_code == 0, result.output
    assert result.output.count("«<s>[MODEL_SETTINGS]»") == 3
    assert f"{faulty}:2: mode high" in result.output
    assert "⟦«[THINK]»1+0=1 1+1=2«[/THINK]»2«</s>»⟧" in result.output
    assert f"{faulty}:4: bad-json" in result.output


def test_preview_options_change_the_mask(faulty: Path) -> None:
    result = RUNNER.invoke(app, ["preview", str(faulty), "--start", "1", "--rows", "1", "--no-thinking", *TOKENIZER])
    assert "«[/THINK]»⟦2«</s>»⟧" in result.output
    assert result.output.count("«<s>") == 1


def test_preview_of_a_run_file_uses_its_mask(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat("q", "a", thinking="t")])
    result = RUNNER.invoke(app, ["preview", str(run_file(tmp_path, path, train_on_thinking=False))])
    assert "⟦a«</s>»⟧" in result.output


def test_arithmetic_rows_pass_the_check(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = RUNNER.invoke(app, ["arithmetic", str(out), "--rows", "50", "--kind", "digits", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "50 rows" in result.output
    check = RUNNER.invoke(app, ["check", str(out), *TOKENIZER])
    assert check.exit_code == 0
    assert "50 rows read, 50 good, 0 bad, 25 in mode high" in check.output


@pytest.mark.parametrize(
    "arguments", [["check", "none.jsonl"], ["preview", "none.jsonl"], ["check", "none.yaml"], ["arithmetic", "x.jsonl", "--kind", "?"]]
)
def test_user_errors_are_typed(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, [*arguments, *(TOKENIZER if arguments[0] != "arithmetic" else [])])
    assert isinstance(result.exception, MS4Error)
    assert list(tmp_path.iterdir()) == []


def test_help_shows_examples() -> None:
    for command in ("preview", "check", "arithmetic"):
        assert f"ms4 data {command}" in RUNNER.invoke(app, [command, "--help"]).output


def test_images_are_shown_and_counted(tmp_path: Path) -> None:
    path = mixed_file(tmp_path, 4)
    shown = RUNNER.invoke(app, ["preview", str(path), *TOKENIZER]).output
    assert f"{path}:1: mode none, " in shown
    assert "images: 2, " in shown
    assert "«image of 28 x 28 pixels: 2 tokens»" in shown
    checked = RUNNER.invoke(app, ["check", str(path), *TOKENIZER])
    assert checked.exit_code == 0, checked.output
    assert f"{path}: images: 3, of " in checked.output
    (tmp_path / "pictures" / "20.png").write_bytes(broken_png())
    checked = RUNNER.invoke(app, ["check", str(path), *TOKENIZER])
    assert checked.exit_code == 2
    assert f"{path}:3: bad-image: image 1 ({tmp_path}/pictures/20.png) cannot be decoded" in checked.output
