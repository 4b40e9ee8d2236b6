"""YAML nodes -> Python values by YAML 1.2's core schema, with the line of every key.

YAML 1.1 readers turn ``6e-5`` into text and ``no`` into false; here ``6e-5`` is a number and ``no`` is text, which the schema then refuses
where a boolean is wanted. Exercise it: ``pytest tests/ms4_train/config/test_nodes.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ms4_train.errors import ConfigError, UntrustedInputError
from ms4_train.untrusted import YamlMapping, YamlNode, YamlScalar, parse_yaml, read_bytes

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value lies: keys and list indices from the top, such as ``("data", "train", 0, "path")``."""

MAX_FILE_BYTES = 1 << 20
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,300}|[0-9]{1,300}(?:\.[0-9]{0,300})?)(?:[eE][-+]?[0-9]{1,9})?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """The values of one YAML file and where they stand."""

    values: Any
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    file: str | None = None

    def line_of(self, path: KeyPath) -> int | None:
        """The 1-based line of a key, or of the nearest section around it that is in the file."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path)


def scalar_value(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar by YAML 1.2's core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return math.nan if text[-3:].lower() == "nan" else -math.inf if text[0] == "-" else math.inf
    return text


def to_document(node: YamlNode, *, file: str | Path | None = None) -> Document:
    """Convert a tree of nodes (of bounded depth, as ``parse_yaml`` gives it) to values and lines."""
    lines: dict[KeyPath, int] = {}

    def convert(node: YamlNode, path: KeyPath) -> Any:
        lines.setdefault(path, node.line)
        if isinstance(node, YamlScalar):
            return scalar_value(node.text) if node.plain else node.text
        if isinstance(node, YamlMapping):
            for key, line in node.key_lines.items():
                lines[(*path, key)] = line
            return {key: convert(child, (*path, key)) for key, child in node.items.items()}
        return [convert(child, (*path, index)) for index, child in enumerate(node.items)]

    return Document(convert(node, ()), lines, None if file is None else str(file))


def read_document(path: str | Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: with file and line, for anything that ``untrusted`` refuses and for a top level that is no mapping.
    """
    try:
        document = to_document(parse_yaml(read_bytes(path, max_bytes=MAX_FILE_BYTES), file=path), file=path)
    except UntrustedInputError as error:
        raise ConfigError(error.message, file=error.file, line=error.line, key=error.key, fix=error.fix) from None
    if not isinstance(document.values, dict):
        raise ConfigError("the file must hold keys and values.", file=path, line=1, fix="write lines such as 'recipe: sft'.")
    return document


def dotted(path: KeyPath) -> str:
    """``("data", "train", 0, "path")`` -> ``data.train.0.path``."""
    return ".".join(str(part) for part in path)
