"""A run configuration as YAML text that reads back to the same configuration.

The writer knows only what the reader gives back: maps with text keys, lists, text, numbers, booleans, null.
Exercise it: ``pytest tests/ms4_train/config/test_render.py``.
"""

from __future__ import annotations

import re
from typing import Any

from ms4_train.config.nodes import scalar_value
from ms4_train.config.schema import Section

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+=@%-]*")
# Text to us, booleans to YAML 1.1 readers, which other programs may use on the same file.
_YAML_1_1_BOOLEANS = {"y", "yes", "n", "no", "on", "off"}


def to_yaml(run: Section) -> str:
    """The whole resolved configuration, defaults included, as YAML."""
    return render_yaml(run.model_dump(mode="json"))


def render_yaml(value: Any) -> str:
    """YAML for nested maps (text keys), lists, text, finite numbers, booleans and None; ends with a newline."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: Any, indent: int) -> list[str]:
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            lines += _entry(f"{pad}{_text(key)}:", item, indent)
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            lines += _entry(f"{pad}-", item, indent)
        return lines
    return [pad + _scalar(value)]


def _entry(head: str, item: Any, indent: int) -> list[str]:
    if not isinstance(item, dict | list) or not item:
        return [f"{head} {_scalar(item)}"]
    inner = _lines(item, indent + 1)
    if head.endswith("-") and isinstance(item, dict):
        return [f"{head} {inner[0].lstrip(' ')}", *inner[1:]]
    return [head, *inner]


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else "[]"
    return _text(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and scalar_value(text) == text and text.lower() not in _YAML_1_1_BOOLEANS:
        return text
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
