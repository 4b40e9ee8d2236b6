"""What decided a checkpoint's softmax scale: in words, for people who look at a folder (spec section 0.1).

Exercise it: ``ms4 weights inspect FOLDER`` and ``pytest tests/ms4_train/weights/reading/test_softmax_source.py``.

Not covered: the decision itself (``model_config``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ms4_train.errors import MS4Error
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.layouts.detect import CONFIG_FILES, Family
from ms4_train.weights.layouts.model_config import MAX_CONFIG_BYTES


def softmax_source(folder: str | Path, family: Family) -> str:
    """The key that decided, ``yarn.apply_scale of params.json`` for one; or that none did."""
    yarn = _object(Path(folder) / CONFIG_FILES["native"]).get("yarn")
    if isinstance(yarn, dict) and yarn.get("apply_scale") is not None:
        return f"yarn.apply_scale of {CONFIG_FILES['native']}"
    if family == "hf":
        content = _object(Path(folder) / CONFIG_FILES["hf"])
        text = content.get("text_config")
        if content.get("softmax_scale") is not None or (isinstance(text, dict) and text.get("softmax_scale") is not None):
            return f"softmax_scale of {CONFIG_FILES['hf']}"
    return f"no key of {CONFIG_FILES[family]}; plain is what the release was trained with"


def _object(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    except MS4Error:
        return {}  # an inspection reports it as a problem
    return content if isinstance(content, dict) else {}
