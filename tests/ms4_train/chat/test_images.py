"""Token grids and pixels against mistral-common's own image encoder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image
from support.images import encoded, exif, hostile_bytes, picture
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import ImageSpec, image_tokens, to_image_batch
from ms4_train.chat.images import image_token_ids
from ms4_train.errors import ImageError, TokenizerError
from ms4_train.untrusted import ImageLimits, inspect_image

RELEASE = ImageSpec(patch_size=14, max_size=1540, merge=2)


class _Size:
    """What mistral-common's counting looks at of an image."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)


def mistral_commons_encoder(spec: ImageSpec) -> ImageEncoder:
    return ImageEncoder(ImageConfig(spec.patch_size, spec.max_size, spec.merge), SpecialImageIDs(img=10, img_break=12, img_end=13))


_SIDES = st.one_of(st.integers(1, 200), st.integers(1, 16_384), st.sampled_from([28, 1540, 1541, 16_384]))
_SPECS = st.sampled_from([RELEASE, ImageSpec(14, 56, 2), ImageSpec(16, 1024, 1), ImageSpec(1, 7, 3)])


@given(_SIDES, _SIDES, _SPECS)
@settings(max_examples=500, deadline=None)
def test_grids_are_mistral_commons(width: int, height: int, spec: ImageSpec) -> None:
    size: Any = _Size(width, height)
    columns, rows = mistral_commons_encoder(spec)._image_to_num_tokens(size)
    assert image_tokens(width, height, spec) == (rows, columns)


@pytest.mark.parametrize(
    ("size", "grid"), [((1024, 768), (28, 37)), ((4000, 3000), (42, 55)), ((9000, 9000), (55, 55)), ((16384, 1), (1, 55))]
)
def test_grids_of_the_specification(size: tuple[int, int], grid: tuple[int, int]) -> None:
    found = image_tokens(*size, RELEASE)
    assert found == grid
    assert (found.cells, found.tokens) == (grid[0] * grid[1], grid[0] * (grid[1] + 1))


IMAGES = {
    "rgb": lambda: encoded(picture(61, 47)),
    "one pixel": lambda: encoded(picture(1, 1)),
    "whole cells": lambda: encoded(picture(56, 28)),
    "several strips": lambda: encoded(picture(1601, 130)),
    "long": lambda: encoded(picture(2000, 11), "JPEG"),
    "larger than the model sees": lambda: encoded(picture(1700, 300), "WEBP"),
    "transparent": lambda: encoded(picture(61, 47, "RGBA")),
    "palette": lambda: encoded(picture(61, 47, "P"), "GIF"),
    "cmyk": lambda: encoded(picture(61, 47, "CMYK"), "JPEG"),
    "16 bit": lambda: encoded(picture(61, 47, "I;16")),
}


@pytest.mark.parametrize("name", IMAGES)
def test_tokens_and_pixels_are_mistral_commons(name: str) -> None:
    data = IMAGES[name]()
    with Image.open(io.BytesIO(data)) as opened:
        expected = mistral_commons_encoder(RELEASE)(ImageChunk(image=opened))
    image = inspect_image(data)
    grid = image_tokens(image.width, image.height, RELEASE)
    assert image_token_ids(grid, tiny_tokenizer().ids) == expected.tokens
    batch = to_image_batch([image], RELEASE)
    assert batch.grids == ((grid.rows * 2, grid.columns * 2),)
    # Exactly: the same operations of OpenCV and NumPy on the same pixels.
    height, width = grid.rows * 28, grid.columns * 28
    pixels = batch.patches_pi.reshape(grid.rows * 2, grid.columns * 2, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(3, height, width)
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels.numpy(), expected.image)


def test_several_images_stand_behind_each_other() -> None:
    images = [inspect_image(encoded(picture(width, 40, seed=width))) for width in (30, 90)]
    both = to_image_batch(images, RELEASE)
    assert both.num_tokens(2) == (4, 8)
    alone = [to_image_batch([image], RELEASE) for image in images]
    assert torch.equal(both.patches_pi, torch.cat([batch.patches_pi for batch in alone]))


def test_turned_images_are_preprocessed_as_displayed() -> None:
    turned = inspect_image(encoded(picture(90, 30), exif=exif(6)))
    assert image_tokens(turned.width, turned.height, RELEASE) == (4, 2)
    assert to_image_batch([turned], RELEASE).grids == ((8, 4),)


def test_damaged_images_and_limits_are_our_errors() -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        to_image_batch([inspect_image(hostile_bytes("damaged pixels"))], RELEASE)
    with pytest.raises(ImageError, match="at most 10 are read"):
        to_image_batch([inspect_image(encoded(picture(30, 20)))], RELEASE, ImageLimits(max_pixels=10))


def test_the_spec_comes_from_the_tokenizer_file() -> None:
    assert tiny_tokenizer().image_spec == RELEASE
    assert ImageSpec.from_section({"image_patch_size": 16, "max_image_size": 1024}) == (16, 1024, 1)
    assert ImageSpec.from_section(None) is None
    bad: list[Any] = [
        [],
        {},
        {"image_patch_size": 0, "max_image_size": 9},
        {"image_patch_size": "14", "max_image_size": 9},
        {"image_patch_size": True, "max_image_size": 9},
        {"image_patch_size": 14, "max_image_size": 10**9},
        {"image_patch_size": 14, "max_image_size": 9, "spatial_merge_size": 0},
    ]
    for section in bad:
        with pytest.raises(ValueError, match="image section"):
            ImageSpec.from_section(section)


def test_spec_and_model_must_fit() -> None:
    RELEASE.check_model(patch_size=14, merge=2, max_size=1540)
    for wrong, key in (
        ({"patch_size": 16}, "image_patch_size"),
        ({"merge": 1}, "spatial_merge_size"),
        ({"max_size": 1024}, "max_image_size"),
    ):
        with pytest.raises(TokenizerError) as caught:
            RELEASE.check_model(**{"patch_size": 14, "merge": 2, "max_size": 1540, **wrong})
        assert caught.value.key == key
