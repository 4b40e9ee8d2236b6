"""What tensors are called in the public layouts of this model, and the one name each has here.

Our names are those of transformers' text-only ``Mistral4ForCausalLM`` (``model.layers.0...``, ``lm_head.weight``). Three layouts are
read (spec section 3.1): that one; transformers' multimodal one (``model.language_model.layers.0...``); and the one on disk, older in
style (``language_model.model.layers.0...``, ``language_model.lm_head.weight``).
Exercise it: ``pytest tests/ms4_train/weights/test_names.py``.

Not covered: Mistral-native names (``layers.0.attention.wq_a``) and quantised tensors, which are only recognised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sized

_TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_QUANTISED_SUFFIXES = (
    "_scale_inv",
    "activation_scale",
    ".weight_scale",
    ".weight_packed",
    ".weight_global_scale",
    ".input_global_scale",
    ".input_scale",
    ".qscale_weight",
    ".qscale_act",
    ".absmax",
    ".quant_map",
)
EXPERT_STACKS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
"""Endings of the parameters whose dim 0 counts experts."""


def text_name(stored: str) -> str:
    """Our name of a stored text tensor; a name of no known layout is returned as it is."""
    for prefix, ours in _TEXT_PREFIXES:
        if stored.startswith(prefix):
            return ours + stored[len(prefix) :]
    return stored


def is_vision_name(stored: str) -> bool:
    """Whether a stored tensor belongs to the vision tower or its projector."""
    return stored.startswith(_VISION_PREFIXES)


def is_quantised_name(stored: str) -> bool:
    """Whether a stored name is a scale or packed weight of a quantised checkpoint."""
    return stored.endswith(_QUANTISED_SUFFIXES)


def is_expert_stack(name: str) -> bool:
    """Whether dim 0 of the parameter counts experts."""
    return name.endswith(EXPERT_STACKS)


def and_more(items: Sized) -> str:
    """What a message that names the first of several items says of the others."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` known names that look most like ``name``, best first."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if found:
        return found
    tail = name.rpartition(".")[2]
    return [other for other in known if tail and tail in other][:count]
