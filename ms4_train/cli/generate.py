"""``ms4 generate`` and ``ms4 chat``: one answer, or a conversation, streamed to the terminal in either reasoning mode.

Exercise it: ``pytest tests/ms4_train/cli/test_generate.py``, or ``ms4 generate MODEL "7*3+8 mod 10 ="``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms4_train.cli.answer_printer import AnswerPrinter, printable
from ms4_train.cli.conversation import CHAT_HELP, Conversation
from ms4_train.cli.model_options import (
    DEFAULT_MAX_TOKENS,
    AdapterOption,
    Dtype,
    DtypeOption,
    KeepQuantisedOption,
    MaxTokensOption,
    Mode,
    ModelArgument,
    ModeOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TokenizerOption,
    TopPOption,
    load_engine,
    open_model,
)
from ms4_train.errors import EngineError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import Answer, ChatTokenizer
    from ms4_train.inference import Completion, Engine, GenerationRequest, SamplingParams

app = typer.Typer()

MAX_STDIN_CHARACTERS = 4 << 20
GENERATE_EXAMPLES = """
Examples:

  ms4 generate runs/tiny/full/model '7*3+8-5*9+2-4 mod 10, left to right'

  ms4 generate runs/tiny/full/model '7*3+8-5*9+2-4 mod 10, left to right' --mode high

  ms4 generate MODEL "Why is the sky blue?" --both-modes --temperature 0.7 --seed 1

  ms4 generate MODEL - --adapter runs/lora/adapter --json < question.txt
"""
CHAT_EXAMPLES = """
Examples:

  ms4 chat runs/tiny/full/model

  ms4 chat MODEL --mode high --system "Answer in one sentence." --adapter runs/lora/adapter
"""


def _sampling(options: dict[str, Any], mode: Mode, max_tokens: int) -> SamplingParams:
    """The sampling parameters of the command's ``options``.

    Raises:
        EngineError: an option is out of its range.
    """
    from ms4_train.inference import SamplingParams

    temperature = options["temperature"] if options["temperature"] is not None else (0.7 if mode is Mode.high else 0.0)
    return SamplingParams(temperature=temperature, top_p=options["top_p"], seed=options["seed"], max_tokens=max_tokens)


def _request(
    tokenizer: ChatTokenizer, limit: int, messages: list[dict[str, Any]], mode: Mode, options: dict[str, Any]
) -> GenerationRequest:
    """The request for an answer to ``messages`` in ``mode``, within the model's ``limit`` in tokens."""
    from ms4_train.inference import GenerationRequest

    prompt_ids = tuple(tokenizer.encode_chat(messages, reasoning_effort=mode.value))
    room = limit - len(prompt_ids)
    if room < 1:
        raise EngineError(
            f"the conversation has {len(prompt_ids)} tokens and the model's limit is {limit}.",
            fix="shorten it; in a chat, /reset begins anew.",
        )
    max_tokens = options["max_tokens"] if options["max_tokens"] is not None else min(DEFAULT_MAX_TOKENS, room)
    if max_tokens > room:
        raise EngineError(
            f"{max_tokens} is more than the {room} that a prompt of {len(prompt_ids)} leaves of the model's limit {limit}.",
            key="--max-tokens",
            fix="lower it, or leave it out.",
        )
    return GenerationRequest(mode.value, prompt_ids, _sampling(options, mode, max_tokens))


def _system_prompt(system: str | None, model: Path) -> str | None:
    """What ``--system`` says or the file it names says, filled in with the model's name and today's date."""
    if system is None:
        return None
    from ms4_train.chat import load_system_prompt, render_system_prompt

    return render_system_prompt(load_system_prompt(system), name=model.resolve().name, today=datetime.now().astimezone().date())


def _messages(system: str | None, prompt: str) -> list[dict[str, Any]]:
    before = [{"role": "system", "content": _checked_text(system, "--system")}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def _footer(completion: Completion, answer: Answer) -> str:
    end = "stopped at max_tokens" if completion.finish_reason == "length" else "ended by itself"
    if answer.thinking_state == "unterminated":
        end += " inside the thinking"
    return (
        f"{completion.prompt_tokens} prompt tokens, {answer.thinking_tokens} of thinking, {answer.content_tokens} of answer, "
        f"{completion.seconds:.1f} s, {end}"
    )


def _as_json(completion: Completion, answer: Answer) -> str:
    record = {
        "mode": completion.request_id,
        "thinking": answer.thinking,
        "content": answer.content,
        "tool_calls": [asdict(call) for call in answer.tool_calls],
        "thinking_state": answer.thinking_state,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "thinking_tokens": answer.thinking_tokens,
        "content_tokens": answer.content_tokens,
        "generated_tokens": completion.generated_tokens,
        "seconds": round(completion.seconds, 3),
    }
    return json.dumps(record, ensure_ascii=False)


def _print_stream(engine: Engine, tokenizer: ChatTokenizer, request: GenerationRequest, console: Console) -> tuple[Completion, Answer]:
    """Streams an answer to ``console``; returns it whole."""
    from ms4_train.inference import completion_answer

    printer = AnswerPrinter(tokenizer, console)
    with engine.stream(request) as stream:
        try:
            for token_id in stream:
                printer.push(token_id)
        finally:
            printer.finish()
    assert stream.completion is not None, "a stream that ended has a completion"
    return stream.completion, completion_answer(stream.completion, tokenizer)


def _note(console: Console, text: str) -> None:
    console.print(printable(text), style="dim", highlight=False, markup=False, emoji=False, soft_wrap=True)


def _read_prompt(prompt: str) -> str:
    text = prompt
    if prompt == "-":
        try:
            text = sys.stdin.read(MAX_STDIN_CHARACTERS + 1).strip()
        except UnicodeDecodeError:
            raise EngineError("standard input is not UTF-8 text.", key="PROMPT", fix="save it as UTF-8.") from None
    if len(text) > MAX_STDIN_CHARACTERS:
        raise EngineError(f"the prompt is longer than {MAX_STDIN_CHARACTERS:,} characters.", key="PROMPT", fix="shorten it.")
    if not text.strip():
        raise EngineError("the prompt is empty.", key="PROMPT", fix="give a question, or - to read it from standard input.")
    return _checked_text(text, "PROMPT")


def _checked_text(text: str, key: str) -> str:
    """``text``, unless it holds bytes that were no UTF-8 (Python passes them on as lone surrogates)."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EngineError("holds bytes that are not UTF-8 text.", key=key, fix="use a UTF-8 terminal, or read the prompt from a file.")
    return text


@app.command("generate", epilog=GENERATE_EXAMPLES, rich_help_panel="Use a model")
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.", show_default=False)],
    mode: ModeOption = Mode.none,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = 0,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = Dtype.auto,
    keep_quantised: KeepQuantisedOption = False,
    both_modes: Annotated[bool, typer.Option("--both-modes", help="Answer in both modes, computed together in one batch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per mode instead of text.")] = False,
) -> None:
    """Generate one answer: thinking dimmed, then the answer."""
    messages = _messages(_system_prompt(system, model), _read_prompt(prompt))
    from rich.console import Console

    from ms4_train.inference import completion_answer

    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    chat_tokenizer, limit = open_model(model, adapter, tokenizer)
    requests = [_request(chat_tokenizer, limit, messages, each, options) for each in (Mode if both_modes else [mode])]
    engine = load_engine(model, adapter, chat_tokenizer, dtype, keep_quantised=keep_quantised)
    console, notes = Console(), Console(stderr=True)
    if not both_modes and not as_json:
        completion, answer = _print_stream(engine, chat_tokenizer, requests[0], console)
        _note(notes, _footer(completion, answer))
        return
    for completion in engine.generate(requests):
        answer = completion_answer(completion, chat_tokenizer)
        if as_json:
            # Not through rich, which wraps and colours.
            sys.stdout.write(_as_json(completion, answer) + "\n")
            continue
        console.print(f"mode {completion.request_id}", style="bold")
        printer = AnswerPrinter(chat_tokenizer, console)
        for token_id in completion.token_ids:
            printer.push(token_id)
        printer.finish()
        _note(notes, _footer(completion, answer))


@app.command("chat", epilog=CHAT_EXAMPLES, rich_help_panel="Use a model")
def chat(
    model: ModelArgument,
    mode: ModeOption = Mode.none,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = 0,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = Dtype.auto,
    keep_quantised: KeepQuantisedOption = False,
) -> None:
    """Talk with a model. /mode none|high, /reset, /quit."""
    from rich.console import Console

    system = _system_prompt(system, model)
    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    chat_tokenizer, limit = open_model(model, adapter, tokenizer)
    _request(chat_tokenizer, limit, _messages(system, "?"), mode, options)  # wrong options end the program now, not every turn
    engine = load_engine(model, adapter, chat_tokenizer, dtype, keep_quantised=keep_quantised)
    console, notes = Console(), Console(stderr=True)

    def ask(messages: list[dict[str, Any]], mode: Mode) -> Answer:
        request = _request(chat_tokenizer, limit, messages, mode, options)
        completion, answer = _print_stream(engine, chat_tokenizer, request, console)
        say(_footer(completion, answer))
        return answer

    def say(text: str) -> None:
        _note(notes, text)

    conversation = Conversation(ask, say, mode, system)
    say(f"{model.name}, mode {mode.value}. {CHAT_HELP}")
    while True:
        try:
            line = console.input("[bold]> [/bold]")
        except UnicodeDecodeError:
            say("that line was not UTF-8 text")
            continue
        except (EOFError, KeyboardInterrupt):
            break
        if not conversation.enter(line):
            break
