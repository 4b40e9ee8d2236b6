"""An image of a stream's row as JSON, for the loader's position: its path, or its encoded bytes.

Exercise it: ``pytest tests/ms4_train/data/test_image_reference.py``.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ms4_train.untrusted import EncodedImage


def image_reference(image: EncodedImage) -> list[Any]:
    """JSON-able; enough to restore the image."""
    data = None if image.data is None else base64.b64encode(image.data).decode("ascii")
    return [data, None if image.path is None else str(image.path), image.width, image.height]


def restore_image(reference: list[Any]) -> EncodedImage:
    """The image that ``reference`` described.

    Raises:
        ValueError, TypeError: ``reference`` is malformed.
    """
    data, path, width, height = reference
    if (data is None) == (path is None):
        raise ValueError("not an image")
    content = None if data is None else base64.b64decode(data, validate=True)
    return EncodedImage(content, None if path is None else Path(path), int(width), int(height))
