"""What ``ms4 generate`` and ``ms4 chat`` share: messages with images, requests within the model's limit, and answers as they come.

Exercise it: ``pytest tests/ms4_train/cli/test_answers.py``.
"""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms4_train.cli.answer_printer import AnswerPrinter, printable
from ms4_train.cli.model_options import DEFAULT_MAX_TOKENS, Mode
from ms4_train.errors import EngineError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import Answer, ChatTokenizer
    from ms4_train.inference import Completion, ConstraintSpec, GenerationRequest, SamplingParams
    from ms4_train.inference.calls import StepEngine

MAX_SCHEMA_BYTES = 1 << 20


@dataclass(frozen=True)
class AnswerOptions:
    """What a command's options say about an answer.

    Attributes:
        temperature: None: 0 in mode none, 0.7 in mode high.
        max_tokens: None: ``DEFAULT_MAX_TOKENS``, or what fits the model.
        thinking_budget: most tokens of a thought.
        schema: JSON schema of the answer, as text.
        top_p, seed, n: see ``SamplingParams`` and ``GenerationRequest``.
    """

    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    thinking_budget: int | None = None
    schema: str | None = None
    n: int = 1

    def sampling(self, mode: Mode) -> SamplingParams:
        """The sampling parameters, with one token as the most.

        Raises:
            EngineError: an option is out of its range.
        """
        from ms4_train.inference import ConstraintSpec, SamplingParams

        temperature = self.temperature if self.temperature is not None else (0.7 if mode is Mode.high else 0.0)
        constraint: ConstraintSpec | None = None
        if self.schema is not None:
            constraint = ConstraintSpec("json_schema", self.schema, after_thinking=mode is Mode.high)
        return SamplingParams(
            temperature=temperature,
            top_p=self.top_p,
            seed=self.seed,
            max_tokens=1,
            thinking_budget=self.thinking_budget,
            constraint=constraint,
        )


def make_request(
    tokenizer: ChatTokenizer,
    limit: int,
    messages: list[dict[str, Any]],
    mode: Mode,
    options: AnswerOptions,
    tools: Sequence[dict[str, Any]] = (),
    *,
    is_chat: bool = False,
) -> GenerationRequest:
    """The request, named by its mode, for an answer to ``messages`` within a ``limit`` in tokens.

    In a chat, whose room shrinks with every turn, an answer is at most what is left.

    Raises:
        EngineError: it does not fit, or an option is out of its range.
        RowError: the messages cannot be a prompt, or hold images that this tokenizer does not know.
    """
    from ms4_train.inference import chat_request

    request = chat_request(
        tokenizer,
        messages,
        request_id=mode.value,
        reasoning_effort=mode.value,
        sampling=options.sampling(mode),
        tools=list(tools) or None,
        n=options.n,
    )
    length = len(request.prompt_ids)
    room = limit - length
    if room < 1:
        raise EngineError(
            f"the conversation has {length} tokens and the model's limit is {limit}.",
            fix="shorten it; in a chat, /reset begins anew and /undo forgets the last turn.",
        )
    most = options.max_tokens if options.max_tokens is not None else min(DEFAULT_MAX_TOKENS, room)
    if most > room and is_chat:
        most = room
    if most > room:
        raise EngineError(
            f"{most} is more than the {room} that a prompt of {length} leaves of the model's limit {limit}.",
            key="--max-tokens",
            fix="lower it, or leave it out.",
        )
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, max_tokens=most))


def user_message(text: str, images: Sequence[Path] = ()) -> dict[str, Any]:
    """A user's message, its images before its text.

    Raises:
        ImageError: a file is no image, or too large.
        UntrustedInputError: a file cannot be read.
    """
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*map(_image_part, images), {"type": "text", "text": text}]}


def _image_part(path: Path) -> dict[str, Any]:
    from ms4_train.errors import ImageError
    from ms4_train.untrusted import DEFAULT_LIMITS, ImageReader, read_bytes

    data = read_bytes(path, max_bytes=DEFAULT_LIMITS.max_bytes)
    try:
        ImageReader().read_bytes(data)
    except ImageError as error:
        raise ImageError(error.message, file=path, fix=error.fix) from None
    kind = mimetypes.guess_type(path.name)[0] or ""
    kind = kind if kind.startswith("image/") else "image/png"  # readers go by the content
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"}}


def read_schema(path: Path | None) -> str | None:
    """The text of a file that holds a JSON schema; what the schema says is checked with the request.

    Raises:
        UntrustedInputError: the file cannot be read, or is not JSON.
    """
    if path is None:
        return None
    from ms4_train.untrusted import parse_json, read_text

    text = read_text(path, max_bytes=MAX_SCHEMA_BYTES)
    parse_json(text, file=path)
    return text


def system_messages(system: str | None, model: Path) -> list[dict[str, Any]]:
    """What ``--system`` says, or the file it names says, filled in with the model's name and today's date; none without text.

    Raises:
        EngineError: the text is not UTF-8.
        UntrustedInputError: the file cannot be read.
    """
    from ms4_train.chat import load_system_prompt, render_system_prompt

    if not system:
        return []
    text = render_system_prompt(load_system_prompt(system), name=model.resolve().name, today=datetime.now().astimezone().date())
    return [{"role": "system", "content": checked_text(text, "--system")}] if text else []


def checked_text(text: str, key: str) -> str:
    """``text``, unless it holds bytes that were no UTF-8 (Python passes them on as lone surrogates).

    Raises:
        EngineError: it does.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise EngineError("holds bytes that are not UTF-8 text.", key=key, fix="use a UTF-8 terminal, or read the prompt from a file.")
    return text


@dataclass(frozen=True)
class Reply:
    """An answer, and its completion; None where Ctrl-C ended it."""

    answer: Answer
    completion: Completion | None


def stream_reply(engine: StepEngine, tokenizer: ChatTokenizer, request: GenerationRequest, console: Console) -> Reply:
    """Shows an answer on ``console`` while it comes. Ctrl-C ends it, and what came before is its answer.

    Raises:
        EngineError: the engine cannot serve the request.
    """
    from ms4_train.chat import parse_answer

    printer, token_ids = AnswerPrinter(tokenizer, console), []
    stream = engine.stream(request)
    try:
        with stream:
            for token_id in stream:
                token_ids.append(token_id)
                printer.push(token_id)
    except KeyboardInterrupt:
        if engine.is_open:  # the interrupted step may have left half its work in the cache
            engine.close()
            engine.open()
    finally:
        printer.finish()
    return Reply(parse_answer(token_ids, tokenizer), stream.completion)


def thinking_state(completion: Completion, answer: Answer) -> str:
    """``none``, ``closed``, ``forced`` (by the thinking budget) or ``unterminated``."""
    return "forced" if completion.thinking == "forced" else answer.thinking_state


def footer(completion: Completion, answer: Answer) -> str:
    """What an answer took, on one line."""
    end = "stopped at max_tokens" if completion.finish_reason == "length" else "ended by itself"
    state = thinking_state(completion, answer)
    if state == "unterminated":
        end += " inside the thinking"
    elif state == "forced":
        end += ", its thinking closed by the budget"
    return (
        f"{completion.prompt_tokens} prompt tokens, {answer.thinking_tokens} of thinking, {answer.content_tokens} of answer, "
        f"{completion.seconds:.1f} s, {end}"
    )


def note(console: Console, text: str) -> None:
    """Show a remark of the program's own."""
    console.print(printable(text), style="dim", highlight=False, markup=False, emoji=False, soft_wrap=True)
