"""The data files of the site: small scripts that hand JSON values to the page, because a page opened from a folder may not read files.

Each file is one call, ``ms4Data("name", value)``. Values are JSON, written so that neither a script nor an HTML parser can be led astray by
what they hold. Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_shards.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ms4_evals.outside_text import printable
from ms4_train.storage import storage_errors

CALLBACK = "ms4Data"
SHARD_BYTES = 200_000
"""Most bytes of one file of texts, a few dozen of its frame aside."""

_WORST_BYTES_PER_CHARACTER = 6  # a control character or "<", escaped
_PIECE_CHARACTERS = SHARD_BYTES // _WORST_BYTES_PER_CHARACTER - 50


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def script_json(value: Any) -> str:
    """JSON that can stand inside a script, of a page or in a file: no ``<``, and no separator that old parsers take for a line's end."""
    text = _ENCODER.encode(value)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def shown_text(text: str) -> str:
    """Outside text as the site shows it: line ends made one kind, control characters and marks that reorder text replaced."""
    return printable(text.replace("\r\n", "\n"))


class ShardWriter:
    """Writes data files into one folder.

    Attributes:
        num_bytes: written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0
        self.num_files = 0
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of names and contents of all files so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, name: str, value: Any) -> None:
        """Write one value under a name of small letters, digits and hyphens.

        Raises:
            StorageError: the file cannot be written.
        """
        self.write_json(name, script_json(value))

    def write_json(self, name: str, text: str) -> None:
        """The same with a value that is ``script_json`` already."""
        assert re.fullmatch("[a-z0-9-]+", name), "names of files are never outside text"
        data = f'{CALLBACK}("{name}",{text});\n'.encode()
        path = self.folder / f"{name}.js"
        with storage_errors(path, len(data)):
            path.write_bytes(data)
        self._digest.update(f"{name} {len(data)} ".encode())
        self._digest.update(data)
        self.num_bytes += len(data)
        self.num_files += 1


class TextShards:
    """Texts of many items in files of bounded size; close it when all are there.

    A file holds pieces ``[item, field, text]``. An item lies in consecutive files, its pieces in order, so a reader loads the files of one
    item and joins what it finds. Nothing but the file being filled is held.

    Args:
        writer: takes the files.
        stem: they are called ``stem-0``, ``stem-1`` ...
        limit: most bytes of a file.
    """

    def __init__(self, writer: ShardWriter, stem: str, *, limit: int = SHARD_BYTES) -> None:
        self._writer = writer
        self._stem = stem
        self._limit = limit
        self._piece = min(_PIECE_CHARACTERS, max(1, limit // _WORST_BYTES_PER_CHARACTER - 50))
        self._pieces: list[str] = []
        self._bytes = 0
        self._shard = 0
        self._items = 0

    def add(self, texts: Mapping[str, str]) -> tuple[int, int]:
        """Add an item, as texts by field (names of ours); returns the numbers of its first and last file."""
        first: int | None = None
        for name, text in texts.items():
            text = shown_text(text)
            for start in range(0, max(1, len(text)), self._piece):
                self._add_piece(f'[{self._items},"{name}",{script_json(text[start : start + self._piece])}]')
                first = self._shard if first is None else first
        self._items += 1
        return (self._shard if first is None else first), self._shard

    def close(self) -> None:
        """Write what is left; at least one file is there afterwards."""
        if self._pieces or self._shard == 0:
            self._flush()

    def _add_piece(self, piece: str) -> None:
        size = len(piece.encode("utf-8")) + 1
        if self._pieces and self._bytes + size > self._limit:
            self._flush()
        self._pieces.append(piece)
        self._bytes += size

    def _flush(self) -> None:
        self._writer.write_json(f"{self._stem}-{self._shard}", f"[{','.join(self._pieces)}]")
        self._shard += 1
        self._pieces, self._bytes = [], 0
