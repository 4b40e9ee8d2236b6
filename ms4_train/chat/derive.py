"""Derives a version 15 tokenizer, the one of Mistral Small 4, from the older tekken file that mistral-common ships.

Why: the release's own ``tekken.json`` cannot be had offline. Both files hold the same byte-pair vocabulary; what the old one lacks are
the special tokens of version 15 (thinking, tool arguments, model settings), so they are added with the ids the release uses
(spec section 4 and 4.1). Byte-pair ranks are merge order, so keeping only the first N ranks gives a valid smaller tokenizer of the same
family, which tiny models use.

Exercise it: ``ms4 model tokenizer OUT --ranks 500`` or ``pytest tests/ms4_train/chat/test_derive.py``.

Not covered: special ids 20-31 and 38-999, whose names in the release are not public; they get filler names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ms4_train.errors import TokenizerError
from ms4_train.storage import atomic_write_text, storage_errors
from ms4_train.untrusted import parse_json, read_bytes

NAMED_SPECIALS: dict[int, str] = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[THINK]",
    35: "[/THINK]",
    36: "[MODEL_SETTINGS]",
    37: "[/MODEL_SETTINGS]",
}
"""Special tokens of the release by id (spec section 4)."""

NUM_NAMED_SPECIALS = 38
"""Special tokens of a reduced tokenizer: ids 0..37, so that every named one keeps its id."""

NUM_BYTES = 256
"""The first 256 ranks are the single bytes; without them some text could not be encoded."""

MAX_TOKENIZER_BYTES = 64 << 20
"""Larger files are refused; the release's is about 20 MB."""

_SOURCE_FILE = "tekken_240911.json"


def derive_tokenizer(out: str | Path, *, num_ranks: int | None = None) -> Path:
    """Write a version 15 ``tekken.json`` derived from the tekken file inside mistral-common.

    Args:
        out: the file to write, or a folder in which ``tekken.json`` is written. mistral-common only reads names with ``tekken`` in them.
        num_ranks: keep only the first N byte-pair ranks (256 <= N), with 38 special tokens: a vocabulary of N + 38. None keeps the
            release's 131072 tokens with 1000 special ones.

    Returns:
        The path of the file.

    Raises:
        TokenizerError: ``num_ranks`` is out of range, the file name is unusable, or mistral-common has no such file.
        StorageError: the file cannot be written.
    """
    path = _target_file(Path(out))
    source = _source_path()
    data = parse_json(read_bytes(source, max_bytes=MAX_TOKENIZER_BYTES), file=source)
    config, vocab = data["config"], data["vocab"]
    full_ranks = config["default_vocab_size"] - config["default_num_special_tokens"]
    if num_ranks is not None and not NUM_BYTES <= num_ranks <= full_ranks:
        raise TokenizerError(
            f"a tokenizer of {num_ranks} ranks cannot be derived.",
            key="num_ranks",
            fix=f"choose {NUM_BYTES} (the bytes) to {full_ranks}, or leave it out for the full tokenizer.",
        )
    config["version"] = "v15"
    if num_ranks is not None:
        data["vocab"] = vocab[:num_ranks]
        config["num_vocab_tokens"] = num_ranks
        config["default_num_special_tokens"] = NUM_NAMED_SPECIALS
        config["default_vocab_size"] = num_ranks + NUM_NAMED_SPECIALS
    data["special_tokens"] = special_tokens()
    data["image"] = {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2}
    data["model_settings_builder"] = {
        "reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]}
    }
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(data, ensure_ascii=False))
    return path


def special_tokens() -> list[dict[str, Any]]:
    """The 38 special tokens in the file's format; nameless ids get the filler name that mistral-common gives them."""
    return [
        {"rank": rank, "token_str": NAMED_SPECIALS.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(NUM_NAMED_SPECIALS)
    ]


def _target_file(out: Path) -> Path:
    path = out if out.suffix == ".json" else out / "tekken.json"
    if "tekken" not in path.name:
        raise TokenizerError(
            "the file name must contain 'tekken'; mistral-common refuses other names.",
            file=path,
            fix=f"write to {path.with_name('tekken.json')}.",
        )
    return path


def _source_path() -> Path:
    import mistral_common

    path = Path(mistral_common.__file__).parent / "data" / _SOURCE_FILE
    if not path.is_file():
        raise TokenizerError(
            f"the installed mistral-common holds no {_SOURCE_FILE}.",
            file=path,
            fix="pip install 'mistral-common>=1.13.1', or give the release's tekken.json.",
        )
    return path
