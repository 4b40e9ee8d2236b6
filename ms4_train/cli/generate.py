"""``ms4 generate``: one answer, streamed to the terminal, or several as text or JSON, in either reasoning mode.

Exercise it: ``pytest tests/ms4_train/cli/test_generate.py``, or ``ms4 generate MODEL "7*3+8 mod 10 ="``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ms4_train.cli.answer_printer import AnswerPrinter
from ms4_train.cli.answers import (
    AnswerOptions,
    checked_text,
    footer,
    make_request,
    note,
    read_schema,
    stream_reply,
    system_messages,
    thinking_state,
    user_message,
)
from ms4_train.cli.generate_ranks import generate_on_ranks, is_rank, launched
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
from ms4_train.errors import EngineError

if TYPE_CHECKING:
    from ms4_train.chat import Answer, ChatTokenizer
    from ms4_train.inference import Completion, GenerationRequest
    from ms4_train.inference.calls import StepEngine

MAX_STDIN_CHARACTERS = 4 << 20
EXAMPLES = """
Examples:

  ms4 generate runs/tiny/full/model '7*3+8-5*9+2-4 mod 10, left to right'

  ms4 generate MODEL "Why is the sky blue?" --both-modes --temperature 0.7 --seed 1

  ms4 generate MODEL "What is the difference?" --image before.png --image after.png --mode high --thinking-budget 2000

  ms4 generate MODEL "A recipe for bread" --json-schema recipe.schema.json --n 3 --temperature 0.7

  ms4 generate MODEL - --adapter runs/lora/adapter --json < question.txt

  ms4 generate MODEL "Why is the sky blue?" --nproc 8       # the experts shared out over eight GPUs
"""


def _as_json(completion: Completion, answer: Answer) -> str:
    record = {
        "mode": completion.request_id,
        "index": completion.index,
        "thinking": answer.thinking,
        "content": answer.content,
        "tool_calls": [asdict(call) for call in answer.tool_calls],
        "thinking_state": thinking_state(completion, answer),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "thinking_tokens": answer.thinking_tokens,
        "content_tokens": answer.content_tokens,
        "generated_tokens": completion.generated_tokens,
        "seconds": round(completion.seconds, 3),
    }
    return json.dumps(record, ensure_ascii=False)


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
    return checked_text(text, "PROMPT")


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.", show_default=False)],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file to show before the message; may be repeated.", show_default=False)
    ] = None,
    mode: ModeOption = Mode.none,
    both_modes: Annotated[bool, typer.Option("--both-modes", help="Answer in both modes, computed together in one batch.")] = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    max_tokens: MaxTokensOption = None,
    thinking_budget: ThinkingBudgetOption = None,
    n: Annotated[int, typer.Option(help="Answers per mode; their prompt is computed once.", min=1, max=1024)] = 1,
    seed: SeedOption = 0,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the answer must follow, after its thinking.", show_default=False)
    ] = None,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = Dtype.auto,
    keep_quantised: KeepQuantisedOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer instead of text.")] = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", metavar="N", help="Share out the experts over N processes, one per GPU.", show_default=False)
    ] = None,
) -> None:
    """Generate one answer: thinking dimmed, then the answer."""
    options = AnswerOptions(temperature, top_p, max_tokens, seed, thinking_budget, None, n)
    modes = list(Mode) if both_modes else [mode]
    if nproc is not None and launched(model, nproc):
        return

    def ask(chat_tokenizer: ChatTokenizer, limit: int) -> list[GenerationRequest]:
        messages = [*system_messages(system, model), user_message(_read_prompt(prompt), image or [])]
        asked = dataclasses.replace(options, schema=read_schema(json_schema))
        if n > 1 and any(asked.sampling(each).temperature == 0 for each in modes):
            raise EngineError(f"at temperature 0 all {n} answers are the same.", key="--n", fix="give --temperature 0.7, say.")
        return [make_request(chat_tokenizer, limit, messages, each, asked) for each in modes]

    def answer(engine: StepEngine, chat_tokenizer: ChatTokenizer, requests: list[GenerationRequest]) -> None:
        _print_answers(engine, chat_tokenizer, requests, as_json=as_json)

    batch = min(n * len(modes), 32)
    if is_rank():
        generate_on_ranks(model, adapter, tokenizer, dtype, keep_quantised=keep_quantised, max_batch_size=batch, ask=ask, answer=answer)
        return
    chat_tokenizer, limit = open_model(model, adapter, tokenizer)
    requests = ask(chat_tokenizer, limit)
    answer(
        load_engine(model, adapter, chat_tokenizer, dtype, keep_quantised=keep_quantised, max_batch_size=batch), chat_tokenizer, requests
    )


def _print_answers(engine: StepEngine, chat_tokenizer: ChatTokenizer, requests: list[GenerationRequest], *, as_json: bool) -> None:
    """Answer all requests; a single one is shown while it comes, unless as JSON."""
    from rich.console import Console

    from ms4_train.inference import completion_answer

    console, notes = Console(), Console(stderr=True)
    if len(requests) == requests[0].n == 1 and not as_json:
        reply = stream_reply(engine, chat_tokenizer, requests[0], console)
        if reply.completion is None:
            raise KeyboardInterrupt
        note(notes, footer(reply.completion, reply.answer))
        return
    for completion in engine.generate(requests):
        answer = completion_answer(completion, chat_tokenizer)
        if as_json:
            # Not through rich, which wraps and colours.
            sys.stdout.write(_as_json(completion, answer) + "\n")
            continue
        several = requests[0].n > 1
        console.print(f"mode {completion.request_id}" + (f", answer {completion.index + 1}" if several else ""), style="bold")
        printer = AnswerPrinter(chat_tokenizer, console)
        for token_id in completion.token_ids:
            printer.push(token_id)
        printer.finish()
        note(notes, footer(completion, answer))
