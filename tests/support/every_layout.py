"""One tiny model with a tokenizer in every public layout, each beside the bf16 Hugging Face folder of what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.layouts import (
    TINY,
    Pieces,
    both_folder,
    fp8_reference_pieces,
    hf_folder,
    hf_fp8_folder,
    hf_fp8_reference_pieces,
    native_folder,
    native_fp8_folder,
    nvfp4_folder,
    nvfp4_reference_pieces,
    reference_pieces,
)
from support.tokenizers import tiny_tokenizer

NAMES = ("hf", "native", "hf-fp8", "native-fp8", "both", "nvfp4")
QUANTISED = {"hf-fp8": "FP8", "native-fp8": "FP8", "both": "FP8", "nvfp4": "NVFP4"}
"""The quantised ones -> how programs name their weights."""


@dataclass(frozen=True)
class Written:
    """A folder in some layout, and one in bf16 with the values that its tensors stand for by the format's own formula."""

    folder: Path
    meaning: Path


def write_layout(root: Path, name: str) -> Written:
    """Write one layout of ``NAMES`` into ``root``; ``both`` holds FP8 in both families, of which the native one counts."""
    writers: dict[str, tuple[Callable[..., Any], Callable[..., Pieces] | None]] = {
        "hf": (hf_folder, None),
        "native": (native_folder, None),
        "hf-fp8": (hf_fp8_folder, hf_fp8_reference_pieces),
        "native-fp8": (native_fp8_folder, fp8_reference_pieces),
        "both": (both_folder, fp8_reference_pieces),
        "nvfp4": (nvfp4_folder, nvfp4_reference_pieces),
    }
    write, meaning = writers[name]
    tiny = dataclasses.replace(TINY, vocab_size=tiny_tokenizer().vocab_size)
    pieces = reference_pieces(tiny=tiny)
    found = Written(root / name, root / f"{name}-in-bf16")
    write(found.folder, tokenizer=True)
    hf_folder(found.meaning, tokenizer=True, pieces=pieces if meaning is None else meaning(pieces, tiny))
    return found
