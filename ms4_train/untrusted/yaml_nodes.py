"""YAML as a tree of nodes with line numbers, built from parser events so that bounds hold while parsing, not after.

Aliases, anchors, tags, duplicate keys, keys that are not plain text and second documents are refused: a run file needs none of them,
and each is a known way to say something else than what the reader sees. Scalars stay text here; ``ms4_train.config.nodes`` gives them
types. Exercise it: ``pytest tests/ms4_train/untrusted/test_yaml_nodes.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted.files import decode_utf8

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_SECONDS = 5.0
"""The parser is pure Python; some short texts make its scanner quadratic. CPU seconds of
this thread, so that a busy machine refuses nothing; far above what a real file takes (about 30 us per node)."""


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """A single value as text. ``plain`` is true where it stands without quotes, and may therefore be a number, a boolean or null."""

    line: int
    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class YamlSequence:
    """A list of nodes."""

    line: int
    items: list[YamlNode] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class YamlMapping:
    """Text keys and their nodes, in the order of the file. ``key_lines`` holds the 1-based line of each key."""

    line: int
    items: dict[str, YamlNode] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)


YamlNode: TypeAlias = YamlScalar | YamlSequence | YamlMapping


@dataclass(slots=True)
class _Open:
    """A collection that is being filled; ``key`` is the mapping key that waits for its value."""

    node: YamlSequence | YamlMapping
    key: str | None = None


def parse_yaml(text: str | bytes, *, file: str | Path | None = None) -> YamlNode:
    """Parse one YAML document of at most 1 MB, 32 levels and 20,000 nodes. An empty document is an empty mapping.

    Args:
        text: the document; bytes are decoded as UTF-8.
        file: named in errors.

    Raises:
        UntrustedInputError: with file and line, for anything malformed, too large or refused (see the module's docstring).
    """
    if isinstance(text, bytes):
        text = decode_utf8(text, file=file)
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise _refuse(f"more than {MAX_BYTES:,} characters.", file, None, "keep data in data files; a run file is small.")
    return _build(text, file)


def _refuse(message: str, file: str | Path | None, line: int | None, fix: str) -> UntrustedInputError:
    return UntrustedInputError(message, file=file, line=line, fix=fix)


def _events(text: str, file: str | Path | None) -> Iterator[Any]:
    """The parser's events. Every way in which the third-party parser can fail becomes a typed error."""
    from ruamel.yaml import YAML, YAMLError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except UntrustedInputError:
        raise
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = None if mark is None else mark.line + 1
        if mark is None and isinstance(position := getattr(error, "position", None), int):
            line = text.count("\n", 0, position) + 1
        raise _refuse(f"invalid YAML: {problem}.", file, line, "check indentation, colons and quotes around this line.") from None
    except Exception as error:
        raise _refuse(f"invalid YAML: {type(error).__name__} in the parser.", file, None, "simplify the file.") from None


class _Builder:
    """Puts nodes together as events arrive; checks depth, count, keys and time at every one of them."""

    def __init__(self, file: str | Path | None) -> None:
        self.file = file
        self.root: YamlNode | None = None
        self.stack: list[_Open] = []
        self.num_nodes = 0
        self.num_documents = 0
        self.deadline = time.thread_time() + MAX_SECONDS

    def add(self, event: Any) -> None:
        """Take one parser event."""
        name, line = type(event).__name__, event.start_mark.line + 1
        if time.thread_time() > self.deadline:
            raise _refuse(f"not read after {MAX_SECONDS:.0f} seconds.", self.file, line, "simplify the file.")
        if name == "DocumentStartEvent":
            self._start_document(event, line)
        elif name in ("MappingEndEvent", "SequenceEndEvent"):
            self.stack.pop()
        elif name in ("AliasEvent", "ScalarEvent", "MappingStartEvent", "SequenceStartEvent"):
            self._place(self._node(event, name, line))

    def _start_document(self, event: Any, line: int) -> None:
        self.num_documents += 1
        if self.num_documents > 1:
            raise _refuse("a second document.", self.file, line, "keep one document per file and remove the line '---'.")
        if event.tags or event.version not in (None, (1, 2)):
            raise _refuse("a %TAG or %YAML directive.", self.file, line, "remove the line that starts with %.")

    def _node(self, event: Any, name: str, line: int) -> YamlNode:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise _refuse(f"more than {MAX_NODES:,} values.", self.file, line, "keep data in data files; a run file is small.")
        if name == "AliasEvent" or event.anchor is not None:
            raise _refuse("anchors (&name) and aliases (*name) are not read.", self.file, line, "write the value out, or quote the text.")
        if event.tag is not None:
            raise _refuse("tags (!name) are not read.", self.file, line, "remove the tag, or quote the text.")
        if name == "ScalarEvent":
            return YamlScalar(line, event.value, plain=event.style is None)
        return YamlMapping(line) if name == "MappingStartEvent" else YamlSequence(line)

    def _place(self, node: YamlNode) -> None:
        if not self.stack:
            self.root = node
        else:
            parent = self.stack[-1]
            if isinstance(parent.node, YamlSequence):
                parent.node.items.append(node)
            elif parent.key is None:
                parent.key = self._key(node, parent.node)
                return
            else:
                parent.node.items[parent.key] = node
                parent.key = None
        if not isinstance(node, YamlScalar):
            self.stack.append(_Open(node))
            if len(self.stack) > MAX_DEPTH:
                raise _refuse(f"nested deeper than {MAX_DEPTH} levels.", self.file, node.line, "flatten the file.")

    def _key(self, node: YamlNode, parent: YamlMapping) -> str:
        if not isinstance(node, YamlScalar):
            raise _refuse("a key that is a list or a mapping.", self.file, node.line, "use text keys; quote text that starts with [ or {.")
        key = node.text
        if key in parent.items:
            first = parent.key_lines[key]
            raise _refuse(f"the key {ascii(key)[:80]} stands twice (first in line {first}).", self.file, node.line, "remove one of them.")
        parent.key_lines[key] = node.line
        return key


def _build(text: str, file: str | Path | None) -> YamlNode:
    builder = _Builder(file)
    for event in _events(text, file):
        builder.add(event)
    root = builder.root
    # An empty file is one empty plain scalar for some parsers and no node for others.
    if root is None or (isinstance(root, YamlScalar) and root.plain and not root.text):
        return YamlMapping(1)
    return root
