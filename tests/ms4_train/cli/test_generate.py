"""``ms4 generate`` on a tiny model folder, against the engine called directly."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console
from support import layouts
from support.images import encoded, picture
from support.models import tiny_config, tiny_model
from support.tokenizers import TINY_RANKS, tiny_tokenizer, tokenizer_file
from typer.testing import CliRunner, Result

from ms4_train.chat import Answer
from ms4_train.cli.answer_printer import AnswerPrinter
from ms4_train.cli.main import app
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


def records(*arguments: object) -> list[dict[str, Any]]:
    result = run("generate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_several_answers_differ_and_the_first_is_the_one_of_a_single_request(folder: Path) -> None:
    arguments = (folder, QUESTION, "--max-tokens", 12, "--temperature", 1, "--seed", 3)
    several = records(*arguments, "--n", 3)
    assert [record["index"] for record in several] == [0, 1, 2]
    assert len({record["thinking"] + record["content"] for record in several}) > 1
    (single,) = records(*arguments)
    assert several[0] | {"seconds": 0} == single | {"seconds": 0}
    printed = run("generate", *arguments, "--n", 2).stdout
    assert "answer 1" in printed
    assert "answer 2" in printed


def test_an_answer_follows_a_schema(folder: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yz"]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
    schema["additionalProperties"] = False
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (record,) = records(folder, QUESTION, "--json-schema", tmp_path / "schema.json", "--temperature", 1, "--max-tokens", 200)
    assert record["finish_reason"] == "stop"
    jsonschema.validate(json.loads(record["content"]), schema)
    (tmp_path / "schema.json").write_text("{")
    assert "schema.json" in str(run("generate", folder, QUESTION, "--json-schema", tmp_path / "schema.json").exception)


def test_a_thought_is_closed_by_its_budget(tmp_path: Path) -> None:
    """The head is fitted so that the model thinks first, as a trained one does."""
    from ms4_train.model import SequenceLayout
    from ms4_train.weights import save_model

    model, tokenizer = small_model(), tiny_tokenizer()
    prompt_ids = tokenizer.encode_chat(user(QUESTION), reasoning_effort="high")
    answer_ids = [tokenizer.think_id, *tokenizer.encode_text("1+2"), tokenizer.end_think_id, *tokenizer.encode_text("3"), tokenizer.eos_id]
    with torch.no_grad():
        ids_t = torch.tensor([*prompt_ids, *answer_ids[:-1]])
        hidden_td = model(ids_t, SequenceLayout.from_lengths([len(ids_t)]))[len(prompt_ids) - 1 :]
        wanted_tv = torch.nn.functional.one_hot(torch.tensor(answer_ids), model.config.vocab_size).float()
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden_td) @ wanted_tv).t())
    save_model(model.state_dict(), tmp_path / "model", config=model.config, tokenizer_file=tokenizer_file(TINY_RANKS))
    arguments = (tmp_path / "model", QUESTION, "--mode", "high", "--temperature", 0, "--max-tokens", 20)
    (free,) = records(*arguments)
    assert (free["thinking"], free["content"], free["thinking_state"]) == ("1+2", "3", "closed")
    (bounded,) = records(*arguments, "--thinking-budget", 2)
    assert (bounded["thinking"], bounded["thinking_state"]) == ("1+", "forced")


def test_images_are_shown_to_the_model(tmp_path: Path) -> None:
    layouts.hf_folder(tmp_path / "seeing", dtype=torch.float32, tokenizer=True)
    files = []
    for number, seed in enumerate((1, 2)):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(encoded(picture(56, 28, seed=seed)))
    plain, first, second, both = (
        records(tmp_path / "seeing", QUESTION, "--max-tokens", 12, *[word for file in shown for word in ("--image", file)])[0]
        for shown in ((), files[:1], files[1:], files)
    )
    assert first["prompt_tokens"] == second["prompt_tokens"] == plain["prompt_tokens"] + 3  # two image tokens and an end
    assert both["prompt_tokens"] == plain["prompt_tokens"] + 6
    assert len({record["content"] + record["thinking"] for record in (plain, first, second, both)}) > 1


def test_a_model_without_eyes_is_shown_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(28, 28)))
    assert isinstance(run("generate", folder, QUESTION, "--image", tmp_path / "a.png").exception, MS4Error)


def test_help_shows_examples() -> None:
    result = run("generate", "--help")
    assert result.exit_code == 0
    assert "ms4 generate" in result.output
