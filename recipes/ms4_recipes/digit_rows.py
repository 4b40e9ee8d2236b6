"""Rows about digits: text that teaches their names, and handwritten ones as pictures, asked in words.

The pictures are scikit-learn's 1,797 digits of 8 x 8 grey values, made larger to what becomes one image token. The last fifth is held out.
Exercise it: ``pytest tests/recipes/ms4_recipes/test_digit_rows.py``.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms4_train.errors import MissingDependencyError
from ms4_train.storage import atomic_write_text

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "Which digit is in the picture?"
PIXELS = 28
"""Side of a picture: one image token."""
HELD_OUT = 360


@dataclass(frozen=True)
class DigitPicture:
    """One handwritten digit: its messages up to the answer, and the word that answers."""

    messages: list[dict[str, Any]]
    answer: str

    def row(self) -> dict[str, Any]:
        """As a training row."""
        return {"messages": [*self.messages, {"role": "assistant", "content": self.answer}], "reasoning_effort": "none"}


def text_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Questions about digits without a picture, whose answers are words or figures."""
    draw = random.Random(seed)
    for _ in range(count):
        digit = draw.randrange(10)
        questions = [(f"Write {digit} as a word.", WORDS[digit]), (f"Write {WORDS[digit]} as a figure.", str(digit))]
        if digit < 9:
            questions.append((f"Which digit comes after {WORDS[digit]}?", WORDS[digit + 1]))
        if digit > 0:
            first = draw.randrange(digit + 1)
            questions.append((f"What is {WORDS[first]} plus {WORDS[digit - first]}?", WORDS[digit]))
        question, answer = draw.choice(questions)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "reasoning_effort": "none"}


def pictures() -> tuple[list[DigitPicture], list[DigitPicture]]:
    """Those to train on, and those held out.

    Raises:
        MissingDependencyError: scikit-learn, which brings the pictures, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependencyError("scikit-learn is not installed.", fix="pip install 'ms4-train[dev]', or scikit-learn.") from None
    grey, digits = load_digits(return_X_y=True)
    found = [DigitPicture(_messages(_png(values)), WORDS[int(digit)]) for values, digit in zip(grey, digits, strict=True)]
    return found[:-HELD_OUT], found[-HELD_OUT:]


def write_rows(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    """Write rows as JSON lines.

    Raises:
        OSError: the file cannot be written.
    """
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _messages(picture: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]}]


def _png(values: Any) -> bytes:
    from PIL import Image

    small = Image.fromarray((values.reshape(8, 8) * 255 / 16).round().astype("uint8"))
    buffer = io.BytesIO()
    small.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
