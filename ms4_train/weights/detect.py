"""Which family of files a folder holds: Hugging Face's or Mistral's own. Decided by the weight files, never by the folder's name.

Exercise it: ``pytest tests/ms4_train/weights/test_detect.py``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

Family = Literal["hf", "native"]

_LOG = logging.getLogger(__name__)


def find_family(folder: str | Path, wanted: Literal["auto", "hf", "native"] = "auto") -> Family:
    """Say whether to read ``model*.safetensors`` or ``consolidated*.safetensors``.

    The public repository holds both; its native files are the more exact ones (the FP8 copy for Hugging Face fused scales), so they are
    preferred, and a line is logged. A folder with neither is taken as Hugging Face's: the reader says what is missing.
    """
    folder = Path(folder)
    if wanted != "auto":
        return wanted
    has_native = (folder / "params.json").exists() and any(folder.glob("consolidated*.safetensors*"))
    has_hf = (folder / "config.json").exists() and any(folder.glob("model*.safetensors*"))
    if has_native and has_hf:
        _LOG.info("%s holds Hugging Face and Mistral-native files; the native ones are read", folder)
    return "native" if has_native else "hf"
