"""Fills the placeholders of a system prompt: ``{name}``, ``{today}`` and ``{yesterday}``, which the model's own ``SYSTEM_PROMPT.txt`` uses.

The caller injects the date, so that a run repeated tomorrow encodes the same tokens. Exercise it:
``pytest tests/ms4_train/chat/test_system_prompt.py``.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from ms4_train.untrusted import read_text

MAX_PROMPT_BYTES = 1 << 20

_PLACEHOLDER = re.compile(r"\{(name|today|yesterday)\}")


def placeholders(text: str) -> set[str]:
    """Names of the placeholders in ``text``."""
    return set(_PLACEHOLDER.findall(text))


def load_system_prompt(text_or_file: str) -> str:
    """The text itself, or what stands in the file where it names one (a single line that ends in ``.txt`` or ``.md``).

    Raises:
        UntrustedInputError: the file is missing, too large, or not UTF-8.
    """
    names_file = "\n" not in text_or_file and len(text_or_file) < 1024 and text_or_file.endswith((".txt", ".md"))
    return read_text(Path(text_or_file), max_bytes=MAX_PROMPT_BYTES).strip("\n") if names_file else text_or_file


def render_system_prompt(text: str, *, name: str, today: datetime.date) -> str:
    """Replace the three placeholders; every other brace (JSON, code) stays as it is.

    Args:
        text: the template.
        name: what the model is called.
        today: date in the caller's time zone; dates are written as 2026-01-31.
    """

    def value(placeholder: str) -> str:
        if placeholder == "name":
            return name
        return (today if placeholder == "today" else today - datetime.timedelta(days=1)).isoformat()

    return _PLACEHOLDER.sub(lambda match: value(match.group(1)), text)
