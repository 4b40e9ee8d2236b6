"""Requests that the options of ``ms4 generate`` and ``ms4 chat`` make, and what happens to an answer that is stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.images import encoded, picture
from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import Answer, parse_answer, read_prompt
from ms4_train.cli.answer_printer import AnswerPrinter
from ms4_train.cli.answers import AnswerOptions, footer, make_request, read_schema, stream_reply, system_messages, user_message
from ms4_train.cli.model_options import DEFAULT_MAX_TOKENS, Mode
from ms4_train.errors import EngineError, ImageError, UntrustedInputError
from ms4_train.inference import Completion, ConstraintSpec, Engine, GenerationRequest
from ms4_train.untrusted import ImageReader

TOKENIZER = tiny_tokenizer()
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
PROMPT = tuple(TOKENIZER.encode_chat(MESSAGES))


DEFAULTS = AnswerOptions()


def request(options: AnswerOptions = DEFAULTS, mode: Mode = Mode.none, limit: int = 10_000, **more: Any) -> GenerationRequest:
    return make_request(TOKENIZER, limit, MESSAGES, mode, options, **more)


def test_options_become_sampling_parameters() -> None:
    schema = '{"type": "object"}'
    found = request(AnswerOptions(top_p=0.5, max_tokens=7, seed=3, thinking_budget=2, schema=schema, n=4), Mode.high)
    assert (found.request_id, found.n) == ("high", 4)
    sampling = found.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed, sampling.thinking_budget) == (0.7, 0.5, 7, 3, 2)
    assert sampling.constraint == ConstraintSpec("json_schema", schema, after_thinking=True)
    assert request().sampling.temperature == 0
    assert request(AnswerOptions(temperature=0.2), Mode.high).sampling.temperature == 0.2


def test_an_answer_gets_what_the_limit_leaves() -> None:
    assert request().prompt_ids == PROMPT
    assert request().sampling.max_tokens == DEFAULT_MAX_TOKENS
    assert request(limit=len(PROMPT) + 5).sampling.max_tokens == 5
    with pytest.raises(EngineError, match="the model's limit is"):
        request(limit=len(PROMPT))
    with pytest.raises(EngineError) as caught:
        request(AnswerOptions(max_tokens=6), limit=len(PROMPT) + 5)
    assert caught.value.key == "--max-tokens"


def test_tools_stand_in_the_prompt() -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
    assert request(tools=[tool]).prompt_ids == tuple(TOKENIZER.encode_chat(MESSAGES, tools=[tool]))


def test_images_stand_before_the_text_whatever_their_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.dat"):
        (tmp_path / name).write_bytes(encoded(picture(28, 28)))
    message = user_message("see", [tmp_path / "a.png", tmp_path / "b.dat"])
    row = read_prompt([message], images=ImageReader())
    assert [isinstance(part, str) for part in row.messages[0].parts] == [False, False, True]
    assert user_message("see") == {"role": "user", "content": "see"}


def test_a_damaged_or_missing_image_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ImageError) as caught:
        user_message("see", [tmp_path / "a.png"])
    assert caught.value.file == str(tmp_path / "a.png")
    with pytest.raises(UntrustedInputError):
        user_message("see", [tmp_path / "none.png"])


def test_a_schema_file_is_json(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object"}))
    assert read_schema(file) == '{"type": "object"}'
    assert read_schema(None) is None
    file.write_text("{")
    with pytest.raises(UntrustedInputError):
        read_schema(file)


def test_the_system_prompt_is_text_or_a_file_and_filled_in(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("You are {name}.\n")
    expected = [{"role": "system", "content": "You are modelname."}]
    assert system_messages(str(tmp_path / "prompt.txt"), tmp_path / "modelname") == expected
    assert system_messages("You are {name}.", tmp_path / "modelname") == expected
    assert system_messages(None, tmp_path) == system_messages("", tmp_path) == []
    with pytest.raises(EngineError, match="not UTF-8"):
        system_messages("caf\udce9", tmp_path)


@pytest.mark.parametrize("is_open", [False, True])
def test_ctrl_c_keeps_what_came_before_and_the_engine_works_on(is_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(tiny_config(vocab_size=TOKENIZER.vocab_size)), TOKENIZER, max_batch_size=1, max_context=256)
    wanted = request(AnswerOptions(max_tokens=30), limit=256)
    whole = stream_reply(engine, TOKENIZER, wanted, Console(file=io.StringIO()))
    assert whole.completion is not None
    assert whole.completion.generated_tokens > 3
    if is_open:
        engine.open()
    shown: list[int] = []

    def push(printer: AnswerPrinter, token_id: int) -> None:
        shown.append(token_id)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AnswerPrinter, "push", push)
        stopped = stream_reply(engine, TOKENIZER, wanted, Console(file=io.StringIO()))
    assert stopped.completion is None
    assert stopped.answer == parse_answer(shown, TOKENIZER)
    assert whole.completion.token_ids[:3] == shown
    assert stream_reply(engine, TOKENIZER, wanted, Console(file=io.StringIO())).answer == whole.answer
    assert engine.is_open == is_open


def test_the_footer_says_how_it_ended() -> None:
    done = Completion("x", [], "stop", None, 3, 1, 0.5)
    assert footer(done, Answer("", "x", content_tokens=1)) == "3 prompt tokens, 0 of thinking, 1 of answer, 0.5 s, ended by itself"
    long = Completion("x", [], "length", None, 3, 1, 0.5)
    assert footer(long, Answer("x", "", thinking_state="unterminated")).endswith("stopped at max_tokens inside the thinking")
    forced = Completion("x", [], "stop", None, 3, 1, 0.5, thinking="forced")
    assert footer(forced, Answer("x", "y", thinking_state="closed")).endswith("its thinking closed by the budget")
