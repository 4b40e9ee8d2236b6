"""Tokenizers for tests, derived once per process into a temporary folder.

``tiny_tokenizer()`` keeps the first 400 byte-pair ranks (vocabulary 438) and loads in milliseconds; ``full_tokenizer()`` has the
release's 131072 tokens and takes about three seconds.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer

TINY_RANKS = 400


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ms4-tokenizers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tokenizer_file(num_ranks: int | None) -> Path:
    """Path of a derived ``tekken.json``; None gives the full one."""
    from ms4_train.chat import derive_tokenizer

    return derive_tokenizer(_folder() / str(num_ranks or "full") / "tekken.json", num_ranks=num_ranks)


@functools.cache
def tiny_tokenizer(num_ranks: int = TINY_RANKS) -> ChatTokenizer:
    """The tokenizer for tiny models: ``num_ranks`` + 38 tokens."""
    from ms4_train.chat import ChatTokenizer

    return ChatTokenizer.from_file(tokenizer_file(num_ranks))


@functools.cache
def full_tokenizer() -> ChatTokenizer:
    """The tokenizer with the release's vocabulary."""
    from ms4_train.chat import ChatTokenizer

    return ChatTokenizer.from_file(tokenizer_file(None))
