"""``ms4 generate`` and ``ms4 chat`` on a tiny model folder, against the engine called directly."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.models import tiny_config, tiny_model
from support.tokenizers import TINY_RANKS, tiny_tokenizer, tokenizer_file
from typer.testing import CliRunner, Result

from ms4_train.chat import Answer
from ms4_train.cli.answer_printer import AnswerPrinter
from ms4_train.cli.generate import app
from ms4_train.errors import MS4Error
from ms4_train.inference import Engine, SamplingParams, chat_request, completion_answer

QUESTION = "7*3+8 mod 10 ="


def small_model() -> Any:
    return tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, max_position_embeddings=512))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ms4_train.weights import save_model

    path = tmp_path_factory.mktemp("generate") / "model"
    model = small_model()
    save_model(model.state_dict(), path, config=model.config, tokenizer_file=tokenizer_file(TINY_RANKS))
    return path


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, catch_exceptions=True)


def answer_of(model: Any, messages: list[dict[str, Any]], mode: Any, **sampling: Any) -> Answer:
    tokenizer = tiny_tokenizer()
    request = chat_request(tokenizer, messages, request_id="x", reasoning_effort=mode, sampling=SamplingParams(**sampling))
    return completion_answer(Engine(model, tokenizer).generate([request])[0], tokenizer)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_json_holds_the_engines_answer_for_both_modes(folder: Path) -> None:
    result = run(
        "generate", folder, QUESTION, "--both-modes", "--json", "--temperature", 1, "--top-p", 0.9, "--seed", 3, "--max-tokens", 25
    )
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["mode"] for record in records] == ["none", "high"]
    for record in records:
        expected = answer_of(small_model(), user(QUESTION), record["mode"], temperature=1, top_p=0.9, seed=3, max_tokens=25)
        assert (record["thinking"], record["content"]) == (expected.thinking, expected.content)
        assert record["thinking_tokens"] == expected.thinking_tokens
        assert record["content_tokens"] == expected.content_tokens
        assert record["thinking_state"] == expected.thinking_state
        assert record["finish_reason"] in ("stop", "length")
        assert record["generated_tokens"] <= 25


def test_text_is_streamed_to_stdout_and_counted_on_stderr(folder: Path) -> None:
    result = run("generate", folder, QUESTION, "--max-tokens", 12)
    assert result.exit_code == 0, result.output
    expected = answer_of(small_model(), user(QUESTION), "none", max_tokens=12)
    plain = io.StringIO()
    printer = AnswerPrinter(tiny_tokenizer(), Console(file=plain))
    tokenizer = tiny_tokenizer()
    request = chat_request(tokenizer, user(QUESTION), request_id="x", reasoning_effort="none", sampling=SamplingParams(max_tokens=12))
    for token_id in Engine(small_model(), tokenizer).stream(request):
        printer.push(token_id)
    printer.finish()
    assert result.stdout == plain.getvalue()
    assert f"{len(request.prompt_ids)} prompt tokens, {expected.thinking_tokens} of thinking" in result.stderr


def test_the_prompt_may_come_from_standard_input_and_a_system_prompt_counts(folder: Path) -> None:
    arguments = ("--json", "--max-tokens", 5)
    (direct,) = run("generate", folder, QUESTION, *arguments).stdout.splitlines()
    (piped,) = run("generate", folder, "-", *arguments, text=QUESTION + "\n").stdout.splitlines()
    (with_system,) = run("generate", folder, QUESTION, "--system", "Be brief.", *arguments).stdout.splitlines()
    ignored = {"seconds": 0}
    assert json.loads(direct) | ignored == json.loads(piped) | ignored
    system = [{"role": "system", "content": "Be brief."}]
    assert json.loads(with_system)["prompt_tokens"] == len(tiny_tokenizer().encode_chat([*system, *user(QUESTION)]))


def test_high_mode_samples_by_default_and_none_is_greedy(folder: Path) -> None:
    def content(*arguments: object) -> dict[str, Any]:
        record = json.loads(run("generate", folder, QUESTION, "--json", "--max-tokens", 20, *arguments).stdout)
        return {key: record[key] for key in ("thinking", "content")}

    assert content("--seed", 1) == content("--seed", 2)
    assert content("--mode", "high", "--seed", 1) != content("--mode", "high", "--seed", 2)
    assert content("--mode", "high", "--seed", 1) == content("--mode", "high", "--seed", 1)


def test_an_adapter_is_loaded_and_one_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from ms4_train.adapters import adapter_tensors, attach, save_adapter
    from ms4_train.config.schema import AdapterSection
    from ms4_train.weights import base_fingerprint

    section = AdapterSection(r=4, target_modules=["q_b_proj", "kv_b_proj"], target_parameters=["mlp.experts.down_proj"])
    model = small_model()
    attach(model, section)
    generator = torch.Generator().manual_seed(0)
    tensors = adapter_tensors(model)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    for name, fingerprint in (("right", base_fingerprint(folder)), ("wrong", "0" * 64)):
        save_adapter(tensors, tmp_path / name, section=section, config=model.config, base_path=folder, base_fingerprint=fingerprint)
    base = json.loads(run("generate", folder, QUESTION, "--json", "--max-tokens", 20).stdout)
    adapted = json.loads(run("generate", folder, QUESTION, "--json", "--max-tokens", 20, "--adapter", tmp_path / "right").stdout)
    expected = answer_of(model, user(QUESTION), "none", max_tokens=20)
    assert (adapted["thinking"], adapted["content"]) == (expected.thinking, expected.content)
    assert (adapted["thinking"], adapted["content"]) != (base["thinking"], base["content"])
    assert isinstance(run("generate", folder, QUESTION, "--adapter", tmp_path / "wrong").exception, MS4Error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-tokens", 600), "--max-tokens: 600 is more than the"),
        (("--temperature", -1), "temperature"),
        (("--top-p", 0), "top_p"),
        (("--adapter", "nowhere"), "nowhere: is not a folder"),
        (("--tokenizer", "nowhere/tekken.json"), "nowhere"),
        (("--system", "caf\udce9"), "--system: holds bytes that are not UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_bad_options_are_typed_errors_before_weights_are_read(
    folder: Path, command: str, arguments: tuple, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ms4_train.weights.load_model", lambda *_, **__: pytest.fail("minutes of loading came before the check"))
    result = run(command, folder, *([QUESTION] if command == "generate" else []), *arguments)
    assert isinstance(result.exception, MS4Error), result.output
    assert words in str(result.exception)
    assert result.exception.fix


@pytest.mark.parametrize(("prompt", "words"), [("", "is empty"), (" \n", "is empty"), ("caf\udce9", "not UTF-8"), ("-", "is empty")])
def test_a_prompt_without_text_is_refused_as_a_prompt(folder: Path, prompt: str, words: str) -> None:
    error = run("generate", folder, "--", prompt, text="").exception
    assert isinstance(error, MS4Error)
    assert words in str(error)
    assert error.key == "PROMPT"


def test_a_tokenizer_that_is_larger_than_the_model_is_named(folder: Path, tmp_path: Path) -> None:
    from ms4_train.chat import derive_tokenizer

    file = derive_tokenizer(tmp_path / "tekken.json", num_ranks=TINY_RANKS + 100)
    error = run("generate", folder, QUESTION, "--tokenizer", file).exception
    assert isinstance(error, MS4Error)
    assert error.file == str(file)


def test_a_missing_model_and_a_prompt_without_room_are_typed_errors(folder: Path, tmp_path: Path) -> None:
    assert "is not a folder" in str(run("generate", tmp_path / "none", "x").exception)
    assert "the model's limit is 512" in str(run("generate", folder, "word " * 400).exception)


def test_chat_answers_each_line_until_quit_or_the_end_of_input(folder: Path) -> None:
    result = run("chat", folder, "--max-tokens", 6, text="hi\n/mode high\n/quit\nnot read\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("prompt tokens") == 1
    assert "mode high" in result.stderr
    assert run("chat", folder, "--max-tokens", 6, text="hi\n").exit_code == 0


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_shows_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"ms4 {command}" in result.output
