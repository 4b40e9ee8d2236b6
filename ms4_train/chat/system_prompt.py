"""Fills the placeholders of a system prompt: ``{name}``, ``{today}`` and ``{yesterday}``, which the model's own ``SYSTEM_PROMPT.txt`` uses.

The caller injects the date, so that a run repeated tomorrow encodes the same tokens. Exercise it:
``pytest tests/ms4_train/chat/test_system_prompt.py``.
"""

from __future__ import annotations

import datetime
import re

_PLACEHOLDER = re.compile(r"\{(name|today|yesterday)\}")


def placeholders(text: str) -> set[str]:
    """Names of the placeholders in ``text``."""
    return set(_PLACEHOLDER.findall(text))


def render_system_prompt(text: str, *, name: str, today: datetime.date) -> str:
    """Replace the three placeholders; every other brace (JSON, code) stays as it is.

    Args:
        text: the template.
        name: what the model is called.
        today: date in the caller's time zone; dates are written as 2026-01-31.
    """
    values = {"name": name, "today": today.isoformat(), "yesterday": (today - datetime.timedelta(days=1)).isoformat()}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], text)
