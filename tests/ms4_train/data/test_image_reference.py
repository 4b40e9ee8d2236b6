"""An image in the position of a stream comes back as it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.image_rows import png

from ms4_train.data.image_reference import image_reference, restore_image
from ms4_train.untrusted import inspect_image


def test_bytes_and_files_come_back(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    for image in (inspect_image(png(0)), inspect_image(tmp_path / "a.png")):
        assert restore_image(json.loads(json.dumps(image_reference(image)))) == image


@pytest.mark.parametrize(
    "reference", [[], [None, None, 1, 1], ["AAAA", "a.png", 1, 1], ["not base64!", None, 1, 1], [None, "a", "x", 1], 5]
)
def test_malformed_ones_are_refused(reference: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        restore_image(reference)  # type: ignore[arg-type]
