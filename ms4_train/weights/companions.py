"""The files that travel with a model's weights through every layout: tokenizer, system prompt, processor settings, licence.

Exercise it: ``pytest tests/ms4_train/weights/test_companions.py``.

Not covered: configurations and indices, which each layout has of its own; programs and model cards, which are never copied.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import read_bytes
from ms4_train.weights.checksums import is_plain_name

COMPANIONS = (
    "tekken.json",
    "SYSTEM_PROMPT.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
"""Patterns of the names, in upper and lower case as they are written."""

_NEVER = (".py", ".sh", ".so", ".bin", ".pt", ".pth", ".pkl", ".safetensors")
"""Programs and weights, whatever their names begin with."""
MAX_COMPANION_BYTES = 64 << 20


def companion_names(folder: str | Path) -> list[str]:
    """Names of the companions in a folder, sorted. Links count as the file that they lead to; a link to nowhere is named too."""
    names = (path.name for path in Path(folder).iterdir() if not path.is_dir() and path.suffix.lower() not in _NEVER)
    return sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS))


def read_companions(folder: str | Path) -> dict[str, bytes]:
    """Name -> content of every companion in a folder.

    Raises:
        UntrustedInputError: one of them is no regular file, cannot be read, is larger than 64 MiB, or has a name with control characters
            or backslashes, which ``SHA256SUMS`` has no line for.
    """
    names = companion_names(folder)
    for name in names:
        if not is_plain_name(name):
            raise UntrustedInputError(
                f"holds a file named {name!r}, which not every system can store.", file=folder, fix="rename the file."
            )
    return {name: read_bytes(Path(folder) / name, max_bytes=MAX_COMPANION_BYTES) for name in names}
