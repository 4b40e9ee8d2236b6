"""An answer on the terminal, token by token as the engine chooses them.

Exercise it: ``pytest tests/ms4_train/cli/test_answer_printer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import ChatTokenizer


def printable(text: str) -> str:
    """``text`` without control characters but newline and tab: a model must not steer the terminal."""
    return "".join(char for char in text if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160))


class AnswerPrinter:
    """Writes an answer as its tokens come: thinking dimmed on a terminal and between its tags elsewhere, then the answer and its calls.

    On a terminal a call is ``-> name arguments`` on a line of its own; elsewhere its tags are spelled.

    Args:
        tokenizer: of the model.
        console: where to.
    """

    def __init__(self, tokenizer: ChatTokenizer, console: Console) -> None:
        from ms4_train.inference import TextDecoder

        self._tokenizer = tokenizer
        self._console = console
        self._decoder = TextDecoder(tokenizer)
        self._is_thinking = False

    def push(self, token_id: int) -> None:
        """Writes what ``token_id`` completes."""
        if token_id == self._tokenizer.think_id:
            self._is_thinking = True
            self._mark("[THINK]", "")
        elif token_id == self._tokenizer.end_think_id:
            self._write(self._decoder.flush())
            self._mark("[/THINK]\n", "\n\n")
            self._is_thinking = False
        elif token_id == self._tokenizer.ids.tool_calls:
            self._write(self._decoder.flush())
            self._is_thinking = False  # a call ends a thought
            self._mark("[TOOL_CALLS]", "\n-> ")
        elif token_id == self._tokenizer.ids.args:
            self._write(self._decoder.flush())
            self._mark("[ARGS]", " ")
        elif token_id < self._tokenizer.num_special_tokens:
            self._write(self._decoder.flush() + self._tokenizer.token_text(token_id))
        else:
            self._write(self._decoder.push(token_id))

    def finish(self) -> None:
        """Ends the answer with a line break."""
        self._write(self._decoder.flush())
        self._is_thinking = False
        self._write("\n")

    def _mark(self, plain: str, on_terminal: str) -> None:
        self._write(on_terminal if self._console.is_terminal else plain)

    def _write(self, text: str) -> None:
        if self._is_thinking and self._console.is_terminal:
            self._console.out(printable(text), style="dim", highlight=False, end="")
        else:
            self._console.file.write(printable(text))  # rich would turn tabs into spaces, which breaks code
        self._console.file.flush()
