"""``ms4 chat``: a conversation on the terminal, with thinking dimmed, images, and tools whose results the user types.

Exercise it: ``pytest tests/ms4_train/cli/test_chat.py``, or ``ms4 chat MODEL``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ms4_train.cli.answers import AnswerOptions, Reply, footer, make_request, note, stream_reply, system_messages
from ms4_train.cli.chat_commands import ChatCommands, read_tools_file
from ms4_train.cli.conversation import ChatSettings, Conversation
from ms4_train.cli.model_options import (
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
    ThinkingBudgetOption,
    TokenizerOption,
    TopPOption,
    load_engine,
    open_model,
)

DEFAULT_CONTEXT = 32_768
EXAMPLES = """
Examples:

  ms4 chat runs/tiny/full/model

  ms4 chat MODEL --mode high --thinking-budget 4000 --system SYSTEM_PROMPT.txt

  ms4 chat MODEL --adapter runs/lora/adapter --tools tools.json

  Then, between messages: /image photo.jpg, /mode none, /undo, /save chat.jsonl, /help
"""


def chat(
    model: ModelArgument,
    mode: ModeOption = Mode.none,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    max_tokens: MaxTokensOption = None,
    thinking_budget: ThinkingBudgetOption = None,
    seed: SeedOption = 0,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file of tools that the model may call.", show_default=False)] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            help=f"Most tokens of the conversation; their cache is kept. Default: {DEFAULT_CONTEXT}, or the model's limit.",
            min=2,
            show_default=False,
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = Dtype.auto,
    keep_quantised: KeepQuantisedOption = False,
) -> None:
    """Talk with a model, thinking dimmed. /help shows commands; Ctrl-C stops an answer, Ctrl-D ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then knows arrow keys and earlier lines

    from rich.console import Console

    before = system_messages(system, model)
    settings = ChatSettings(mode, temperature, read_tools_file(tools) if tools else [])
    options = AnswerOptions(top_p=top_p, max_tokens=max_tokens, seed=seed, thinking_budget=thinking_budget)
    chat_tokenizer, limit = open_model(model, adapter, tokenizer)
    limit = min(max_context or DEFAULT_CONTEXT, limit)

    def request(messages: list[dict[str, Any]], now: ChatSettings, *, is_turn: bool = False) -> Any:
        wanted = dataclasses.replace(options, temperature=now.temperature)
        return make_request(chat_tokenizer, limit, messages, now.mode, wanted, now.tools, is_chat=is_turn)

    request([*before, {"role": "user", "content": "?"}], settings)  # wrong options end the program now, not every turn
    engine = load_engine(model, adapter, chat_tokenizer, dtype, keep_quantised=keep_quantised, max_context=limit)
    console, notes = Console(), Console(stderr=True)

    def ask(messages: list[dict[str, Any]], now: ChatSettings) -> Reply:
        reply = stream_reply(engine, chat_tokenizer, request(messages, now, is_turn=True), console)
        if reply.completion is not None:
            say(footer(reply.completion, reply.answer))
        return reply

    def say(text: str) -> None:
        note(notes, text)

    conversation = Conversation(ask, lambda prompt: console.input(prompt, markup=False, emoji=False), say, settings, before)
    commands = ChatCommands(conversation, say, lambda text: system_messages(text, model))
    say(f"{model.name}, mode {mode.value}. /help shows commands, Ctrl-D ends.")
    with engine:  # open for all turns: what is computed of a conversation stays in the prefix cache
        while True:
            try:
                line = console.input("[bold]> [/bold]")
            except UnicodeDecodeError:
                say("that line was not UTF-8 text")
                continue
            except KeyboardInterrupt:
                say("Ctrl-D ends")
                continue
            except EOFError:
                break
            if not commands.enter(line):
                break
