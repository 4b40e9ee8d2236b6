"""Overrides on the command line: ``training.learning_rate=1e-4``, ``data.train.0.path=rows.jsonl``, ``adapter=null``.

The value is read as YAML would read it. Exercise it: ``pytest tests/ms4_train/config/test_overrides.py``.
"""

from __future__ import annotations

import copy
from typing import Any, get_origin

from ms4_train.config.keys import annotations_at, unknown_key_fix
from ms4_train.config.nodes import KeyPath, dotted, to_document
from ms4_train.config.schema import Section
from ms4_train.errors import ConfigError, UntrustedInputError
from ms4_train.untrusted import YamlMapping, parse_yaml


def _error(text: str, message: str, fix: str) -> ConfigError:
    return ConfigError(message, file=f"override {text}", fix=fix)


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Split ``a.b.0.c=value`` into its path and its value.

    Raises:
        ConfigError: there is no ``=``, no key, or the value is not YAML.
    """
    key, equals, written = text.partition("=")
    if not equals:
        raise _error(text, "there is no '='.", "write key=value, such as training.learning_rate=1e-4.")
    parts = key.strip().split(".")
    if not all(parts):
        raise _error(text, "an empty key.", "write key=value, such as training.learning_rate=1e-4.")
    path: KeyPath = tuple(int(part) if part.isascii() and part.isdecimal() and len(part) < 10 else part for part in parts)
    if not written.strip():
        return path, None
    try:
        node = parse_yaml(written)
    except UntrustedInputError as error:
        raise _error(text, error.message, error.fix or "quote the value.") from None
    if isinstance(node, YamlMapping) and not node.items and written.strip() != "{}":
        return path, written  # YAML reads a lone '#...' as a comment; on a command line it is the value.
    return path, to_document(node).values


def apply_overrides(values: dict[str, Any], model: type[Section], overrides: list[str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Apply overrides, later ones over earlier ones, to a copy of ``values``.

    Sections and lists that the file leaves out are made; a list may grow by one entry at its end.

    Returns:
        The new values, and for each path that was set the text of its override.

    Raises:
        ConfigError: an override is malformed, or names a place that does not exist; the nearest known key is in the message.
    """
    values = copy.deepcopy(values)
    places: dict[KeyPath, str] = {}
    for text in overrides:
        path, value = parse_override(text)
        _check_known(text, path, model, values)
        _set(text, path, value, values, model)
        places = {known: place for known, place in places.items() if known[: len(path)] != path}
        places[path] = text
    return values, places


def _check_known(text: str, path: KeyPath, model: type[Section], values: dict[str, Any]) -> None:
    around: Any = values
    for end, part in enumerate(path, 1):
        if not annotations_at(model, path[:end]):
            if isinstance(part, int):
                raise _error(text, f"{dotted(path[: end - 1])} is not a list.", "leave the index out.")
            if any(get_origin(annotation) is list for annotation in annotations_at(model, path[: end - 1])):
                raise _error(
                    text, f"{dotted(path[: end - 1])} is a list.", f"name an entry: {dotted((*path[: end - 1], 0, *path[end - 1 :]))}."
                )
            section = around if isinstance(around, dict) else None
            raise _error(text, f"{dotted(path[:end])}: unknown key.", unknown_key_fix(model, path[:end], section))
        if isinstance(around, dict):
            around = around.get(part)
        elif isinstance(around, list) and isinstance(part, int) and part < len(around):
            around = around[part]
        else:
            around = None


def _set(text: str, path: KeyPath, value: Any, values: dict[str, Any], model: type[Section]) -> None:
    here: Any = values
    for end, part in enumerate(path, 1):
        _make_room(text, path, end, here)
        if end == len(path):
            here[part] = value
            return
        inner = here.get(part) if isinstance(here, dict) else here[part]
        if inner is None:
            inner = here[part] = [] if _is_list(model, path[:end]) else {}
        here = inner


def _make_room(text: str, path: KeyPath, end: int, here: Any) -> None:
    """Check that ``here`` can take ``path[end - 1]``; a list gets one more entry where the index asks for the next one."""
    part, above = path[end - 1], dotted(path[: end - 1])
    if isinstance(part, str):
        if not isinstance(here, dict):
            raise _error(text, f"{above} is not a section in the file.", "correct the file first.")
        return
    if not isinstance(here, list):
        raise _error(text, f"{above} is not a list in the file.", "give the whole list: key=[a, b].")
    if part > len(here):
        fix = f"use an index from 0 to {len(here)} ({len(here)} adds an entry)."
        raise _error(text, f"{dotted(path[:end])}: the list has {len(here)} {'entry' if len(here) == 1 else 'entries'}.", fix)
    if part == len(here):
        here.append(None)


def _is_list(model: type[Section], path: KeyPath) -> bool:
    return any(get_origin(annotation) is list for annotation in annotations_at(model, path))
