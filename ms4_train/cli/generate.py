"""``ms4 generate`` and ``ms4 chat``: one answer, or a conversation, streamed to the terminal in either reasoning mode.

Exercise it: ``pytest tests/ms4_train/cli/test_generate.py``, or ``ms4 generate MODEL "7*3+8 mod 10 ="``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms4_train.cli.answer_printer import AnswerPrinter, printable
from ms4_train.errors import AdapterError, EngineError, MS4Error, WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import Answer, ChatTokenizer
    from ms4_train.inference import Completion, Engine, GenerationRequest, SamplingParams

app = typer.Typer()

DEFAULT_MAX_TOKENS = 2048
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
CHAT_HELP = "/mode none|high changes the reasoning mode, /reset forgets the conversation, /quit ends it."


class Mode(StrEnum):
    """The two reasoning modes."""

    none = "none"
    high = "high"


class Dtype(StrEnum):
    """Type of parameters and activations."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


ModelArgument = Annotated[Path, typer.Argument(help="Model folder: config.json, safetensors files, tekken.json.", show_default=False)]
ModeOption = Annotated[Mode, typer.Option(help="Reasoning mode: none answers directly, high thinks first.")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 takes the most likely token. Default: 0 in mode none, 0.7 in mode high.", show_default=False)
]
TopPOption = Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this probability.")]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        help=f"Most tokens of the answer, thinking included. Default: {DEFAULT_MAX_TOKENS}, or what fits the model.", show_default=False
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the sampled answer.")]
AdapterOption = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to load on top.", show_default=False)]
SystemOption = Annotated[
    str | None,
    typer.Option(help="System prompt, or a .txt or .md file; {name}, {today} and {yesterday} are filled in.", show_default=False),
]
TokenizerOption = Annotated[Path | None, typer.Option(help="tekken.json file; default: the one in MODEL.", show_default=False)]
DtypeOption = Annotated[Dtype, typer.Option(help="Type of parameters; auto is float32 on a CPU and bfloat16 on a GPU.")]


def _open_model(model: Path, adapter: Path | None, tokenizer: Path | None) -> tuple[ChatTokenizer, int]:
    """The tokenizer, and the model's limit in tokens; says what is wrong before weights are read, which may take minutes."""
    from ms4_train.chat import ChatTokenizer
    from ms4_train.weights import read_config

    if not model.is_dir():
        raise WeightsError("is not a folder.", file=model, fix="give a folder with config.json and safetensors files.")
    if adapter is not None and not adapter.is_dir():
        raise AdapterError("is not a folder.", file=adapter, fix="give a folder with adapter_config.json.")
    config = read_config(model)
    chat_tokenizer = ChatTokenizer.from_file(tokenizer if tokenizer is not None else model / "tekken.json")
    chat_tokenizer.check_model(config.vocab_size)
    return chat_tokenizer, config.max_position_embeddings


def _load_engine(model: Path, adapter: Path | None, chat_tokenizer: ChatTokenizer, dtype: Dtype) -> Engine:
    import torch
    from rich.console import Console

    from ms4_train.inference import Engine
    from ms4_train.weights import base_fingerprint, load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = dtype.value if dtype is not Dtype.auto else ("bfloat16" if device == "cuda" else "float32")
    with Console(stderr=True).status(f"loading {model.name} ({name}, {device})"):
        network = load_model(model, dtype=getattr(torch, name))
        if adapter is not None:
            from ms4_train.adapters import load_adapter

            load_adapter(network, adapter, base_fingerprint=base_fingerprint(model))
        network.to(device)
    return Engine(network, chat_tokenizer, max_batch_size=len(Mode), max_context=network.config.max_position_embeddings)


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
    both_modes: Annotated[bool, typer.Option("--both-modes", help="Answer in both modes, computed together in one batch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per mode instead of text.")] = False,
) -> None:
    """Generate one answer: thinking dimmed, then the answer."""
    messages = _messages(_system_prompt(system, model), _read_prompt(prompt))
    from rich.console import Console

    from ms4_train.inference import completion_answer

    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    chat_tokenizer, limit = _open_model(model, adapter, tokenizer)
    requests = [_request(chat_tokenizer, limit, messages, each, options) for each in (Mode if both_modes else [mode])]
    engine = _load_engine(model, adapter, chat_tokenizer, dtype)
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


class Conversation:
    """The turns of ``ms4 chat`` and its commands.

    Args:
        ask: answers the messages in a mode and shows the answer while it comes.
        say: shows a note to the user.
        mode: of the first turn.
        system: system prompt, if any.
    """

    def __init__(
        self, ask: Callable[[list[dict[str, Any]], Mode], Answer], say: Callable[[str], None], mode: Mode, system: str | None
    ) -> None:
        self.mode = mode
        self._ask = ask
        self._say = say
        self._system: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def enter(self, line: str) -> bool:
        """Handles one line of the user's; returns whether the conversation goes on. Errors end a turn, not the conversation."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(line)
        if line:
            self._turn(line)
        return True

    def _command(self, line: str) -> bool:
        name, _, value = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.messages = list(self._system)
            self._say("conversation forgotten")
        elif name == "/mode" and value.strip() in Mode.__members__:
            self.mode = Mode(value.strip())
            self._say(f"mode {self.mode.value}")
        else:
            self._say(f"mode {self.mode.value}. {CHAT_HELP}")
        return True

    def _turn(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self._ask(messages, self.mode)
        except MS4Error as error:
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self._say("stopped; this turn is forgotten")
            return
        if not answer.content.strip() or answer.tool_calls:
            self._say("no plain answer; this turn is forgotten")
            return
        reply: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.thinking:
            reply["reasoning_content"] = answer.thinking
        self.messages = [*messages, reply]


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
) -> None:
    """Talk with a model. /mode none|high, /reset, /quit."""
    from rich.console import Console

    system = _system_prompt(system, model)
    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    chat_tokenizer, limit = _open_model(model, adapter, tokenizer)
    _request(chat_tokenizer, limit, _messages(system, "?"), mode, options)  # wrong options end the program now, not every turn
    engine = _load_engine(model, adapter, chat_tokenizer, dtype)
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
