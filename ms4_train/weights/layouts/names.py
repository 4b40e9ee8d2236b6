"""What tensors are called in the public layouts of this model, and the one name each has here.

Our names are those of transformers' text-only ``Mistral4ForCausalLM`` (``model.layers.0...``, ``lm_head.weight``). Hugging Face files
come with three prefixes (spec section 3.1): that one; transformers' multimodal one (``model.language_model.layers.0...``); and the one on
disk, older in style (``language_model.model.layers.0...``, ``language_model.lm_head.weight``).
Exercise it: ``pytest tests/ms4_train/weights/layouts/test_names.py``.

Not covered: Mistral-native names (``native_names``), and which layout holds what (``layouts``).
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Sized

_TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_MANY = 500


def text_name(stored: str) -> str:
    """Our name of a stored text tensor; a name of no known layout is returned as it is."""
    for prefix, ours in _TEXT_PREFIXES:
        if stored.startswith(prefix):
            return ours + stored[len(prefix) :]
    return stored


def and_more(items: Sized) -> str:
    """What a message that names the first of several items says of the others."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` known names that look most like ``name``, best first."""
    known = list(known)
    if len(known) > _MANY:  # the comparison below is slow, and real checkpoints have tens of thousands of names
        parts = set(name.split("."))
        known = heapq.nlargest(_MANY, known, key=lambda other: len(parts.intersection(other.split("."))))
    found = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if found:
        return found
    tail = name.rpartition(".")[2]
    return [other for other in known if tail and tail in other][:count]
