"""A translation while it is being made: the outside file with what was read of it, and our run with what became of every key.

Exercise it: ``pytest tests/ms4_train/config/importing/test_draft.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ms4_train.config.nodes import Document, KeyPath, dotted
from ms4_train.errors import ConfigError

# Text to us, booleans to the YAML 1.1 readers that other programs use.
_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


@dataclass(frozen=True)
class Entry:
    """What became of one key: the place and value it has with us, or, where ``target`` is None, why it has none."""

    source: str
    target: str | None
    words: str


@dataclass
class Draft:
    """The outside file and the run that is made of it.

    Attributes:
        document: the outside file.
        run: our run, as nested maps.
        comments: lines to write above a key of ``run``; above everything for the empty path.
        entries: what became of every key that was read.
        warnings: what the user should know before trusting either file.
    """

    document: Document
    run: dict[str, Any] = field(default_factory=dict)
    comments: dict[KeyPath, list[str]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def value(self, path: KeyPath) -> Any:
        """The outside file's value at ``path``; None where it has none."""
        found: Any = self.document.values
        for part in path:
            if isinstance(found, dict):
                found = found.get(part)
            elif isinstance(found, list) and isinstance(part, int) and part < len(found):
                found = found[part]
            else:
                return None
        return found

    def wrong(self, path: KeyPath, wanted: str) -> ConfigError:
        """The error of a value that cannot be understood."""
        shown = ascii(self.value(path))[:60]
        return ConfigError(
            f"{shown} is not {wanted}.", file=self.document.file, line=self.document.line_of(path), key=dotted(path), fix=f"write {wanted}."
        )

    def text(self, *path: str | int) -> str | None:
        """Text at ``path``; None where the key is absent or empty."""
        found = self.value(path)
        if found is not None and not isinstance(found, str):
            raise self.wrong(path, "text")
        return found or None

    def number(self, *path: str | int) -> float | None:
        """A number at ``path``."""
        found = self.value(path)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise self.wrong(path, "a number")
        return found

    def whole(self, *path: str | int) -> int | None:
        """A whole number at ``path``."""
        found = self.value(path)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
            raise self.wrong(path, "a whole number")
        return found

    def boolean(self, *path: str | int) -> bool | None:
        """A boolean at ``path``, by YAML 1.1's words too, which other programs read."""
        found = self.value(path)
        if isinstance(found, str):
            found = _WORDS.get(found.lower(), found)
        if found is not None and not isinstance(found, bool):
            raise self.wrong(path, "true or false")
        return found

    def texts(self, *path: str | int) -> list[str] | None:
        """A list of texts at ``path``; one text stands for a list of it."""
        found = self.value(path)
        if found is None:
            return None
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.wrong(path, "a list of texts")
        return found

    def section(self, *path: str | int) -> dict[str, Any]:
        """The keys and values at ``path``; none where the key is absent or empty."""
        found = self.value(path)
        if found is not None and not isinstance(found, dict):
            raise self.wrong(path, "a section of keys and values")
        return found or {}

    def sections(self, *path: str | int) -> int:
        """How many sections the list at ``path`` has."""
        found = self.value(path)
        if found is None:
            return 0
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self.wrong(path, "a list of sections")
        return len(found)

    def put(self, source: str, target: KeyPath, value: Any, note: str = "") -> None:
        """Set a key of our run. ``source`` names the outside keys it comes from; lists grow by one entry at their end."""
        here: Any = self.run
        for part, following in pairwise(target):
            made: Any = [] if isinstance(following, int) else {}
            if isinstance(here, list):
                if part == len(here):
                    here.append(made)
                here = here[part]  # type: ignore[index]
            else:
                here = here.setdefault(part, made)
        if isinstance(here, list):
            here.append(value)
        else:
            here[target[-1]] = value
        self.entries.append(Entry(source, dotted(target), f"{_shown(value)}{f' ({note})' if note else ''}"))

    def drop(self, source: str, why: str) -> None:
        """Record a key that has no place in our run."""
        self.entries.append(Entry(source, None, why))

    def warn(self, text: str) -> None:
        """Record what the user should know; once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def comment(self, target: KeyPath, *lines: str) -> None:
        """Write lines above a key of our run."""
        self.comments.setdefault(target, []).extend(lines)

    def is_named(self, key: str) -> bool:
        """Whether an entry speaks of the outside file's top key ``key``."""
        return any(part.split(".")[0] == key for entry in self.entries for part in entry.source.split(", "))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)
