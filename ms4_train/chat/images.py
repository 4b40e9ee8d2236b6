"""Images and tokens: how many tokens an image takes, which ones, and the pixels that stand for them in the vision tower.

Tokens follow from width and height alone, so rows are encoded without decoding an image. Pixels are those of mistral-common, which every
server of the model uses, bit for bit: OpenCV's cubic resize to whole cells, then normalisation, both in float32. They are written out here,
because mistral-common holds 18 bytes per pixel at once and importing it takes half of a worker's second.

Exercise it: ``pytest tests/ms4_train/chat/test_images.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ms4_train.chat.special_ids import SpecialIds
from ms4_train.errors import TokenizerError
from ms4_train.untrusted import DEFAULT_LIMITS, EncodedImage, ImageLimits, decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ms4_train.model.images import ImageBatch

_MAX_SIZE = 1 << 16
_STRIP_PIXELS = 1 << 16
_MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
_STD_RGB = (0.26862954, 0.26130258, 0.27577711)


class ImageSpec(NamedTuple):
    """How a tokenizer cuts images: the ``image`` section of its file."""

    patch_size: int
    """Side of a patch in pixels."""
    max_size: int
    """Longest side in pixels; a larger image is made smaller."""
    merge: int
    """Patches per side of the cell that becomes one token."""

    @property
    def cell(self) -> int:
        """Side in pixels of what becomes one token."""
        return self.patch_size * self.merge

    @classmethod
    def from_section(cls, section: Any) -> ImageSpec | None:
        """Read the section; None where the file has none.

        Raises:
            ValueError: it is malformed.
        """
        if section is None:
            return None
        if not isinstance(section, Mapping):
            raise ValueError("its image section is not an object")
        merge = section.get("spatial_merge_size")
        spec = cls(section.get("image_patch_size", 0), section.get("max_image_size", 0), 1 if merge is None else merge)
        if any(not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_SIZE for value in spec):
            raise ValueError("its image section holds a size that is not a positive integer")
        return spec

    def check_model(self, *, patch_size: int, merge: int, max_size: int) -> None:
        """Check that a model's vision tower takes images as this tokenizer cuts them.

        Raises:
            TokenizerError: the two do not belong together.
        """
        for name, ours, theirs in (("image_patch_size", self.patch_size, patch_size), ("spatial_merge_size", self.merge, merge)):
            if ours != theirs:
                raise TokenizerError(
                    f"is {ours} in the tokenizer, but {theirs} in the model's vision tower.",
                    key=name,
                    fix="use the model's own tekken.json.",
                )
        if self.max_size > max_size:
            raise TokenizerError(
                f"is {self.max_size}, but the model's vision tower takes images of at most {max_size} pixels.",
                key="max_image_size",
                fix="use the model's own tekken.json.",
            )


class TokenGrid(NamedTuple):
    """The cells of an image; each becomes one ``[IMG]`` token with an embedding."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """``[IMG]`` tokens, those that get an embedding."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """All tokens, with the break or end after each row."""
        return self.rows * (self.columns + 1)


def image_tokens(width: int, height: int, spec: ImageSpec) -> TokenGrid:
    """The grid of an image of this size, as mistral-common counts it."""
    ratio = max(height / spec.max_size, width / spec.max_size)
    if ratio > 1:
        # A very long image keeps at least one pixel of its short side.
        width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
    return TokenGrid(rows=(height - 1) // spec.cell + 1, columns=(width - 1) // spec.cell + 1)


def image_token_ids(grid: TokenGrid, ids: SpecialIds) -> list[int]:
    """An image in the token stream: rows of ``[IMG]``, each closed by ``[IMG_BREAK]``, the last by ``[IMG_END]``."""
    row = [ids.img] * grid.columns
    return [*([*row, ids.img_break] * (grid.rows - 1)), *row, ids.img_end]


def to_image_batch(images: Sequence[EncodedImage], spec: ImageSpec, limits: ImageLimits = DEFAULT_LIMITS) -> ImageBatch:
    """Decode images and preprocess them for the vision tower, in float32.

    An image takes 16 bytes per pixel of its file while it is resized (200 MB at the default limits), one after the other: the resize is
    in float32, and resizing channel by channel or strip by strip would not give the same bits.

    Args:
        images: at least one, in the order of their tokens.
        spec: of the tokenizer that made the tokens.
        limits: that the images were checked with.

    Raises:
        ImageError: an image is damaged or has changed since it was checked.
        UntrustedInputError: its file cannot be read.
    """
    import torch

    from ms4_train.model.images import ImageBatch

    pixels = [torch.from_numpy(preprocess(image, spec, limits)) for image in images]
    return ImageBatch.from_pixels(pixels, spec.patch_size)


def preprocess(image: EncodedImage, spec: ImageSpec, limits: ImageLimits = DEFAULT_LIMITS) -> Any:
    """One image as a float32 array [C, H, W] of whole cells (see ``to_image_batch``)."""
    import cv2
    import numpy as np

    grid = image_tokens(image.width, image.height, spec)
    # Nested, so that the decoded and the enlarged picture are gone as soon as the next step has what it needs of them.
    pixels_hwc = cv2.resize(
        _float_pixels(decode_image(image, limits)), (grid.columns * spec.cell, grid.rows * spec.cell), interpolation=cv2.INTER_CUBIC
    )
    pixels_hwc /= np.float32(255)
    pixels_hwc -= np.asarray(_MEAN_RGB, dtype=np.float32)
    pixels_hwc /= np.asarray(_STD_RGB, dtype=np.float32)
    return pixels_hwc.transpose(2, 0, 1)


def _float_pixels(picture: Image) -> Any:
    """An RGB picture, which is closed, as float32 [H, W, C], converted strip by strip: at once would take a third copy of it."""
    import numpy as np

    pixels_hwc = np.empty((picture.height, picture.width, 3), dtype=np.float32)
    height = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, height):
        bottom = min(top + height, picture.height)
        pixels_hwc[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    picture.close()  # now, not when the garbage is next collected
    return pixels_hwc
