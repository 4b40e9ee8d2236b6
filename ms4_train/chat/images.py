"""Images and tokens: how many tokens an image takes, which ones, and the pixels that stand for them in the vision tower.

Tokens follow from width and height alone, so rows are encoded without decoding an image. Pixels are preprocessed by mistral-common's own
function (cubic resize to whole cells, normalisation), the one that every server of the model uses.

Exercise it: ``pytest tests/ms4_train/chat/test_images.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, ImageEncoding, SpecialImageIDs, transform_image

from ms4_train.chat.special_ids import SpecialIds
from ms4_train.errors import TokenizerError
from ms4_train.untrusted import DEFAULT_LIMITS, EncodedImage, ImageLimits, decode_image

if TYPE_CHECKING:
    from ms4_train.model.images import ImageBatch

_MAX_SIZE = 1 << 16


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

    An image takes 15 to 18 bytes per pixel of its file while it is resized (730 MB at 40 million pixels), one after the other:
    mistral-common resizes in float32, and resizing channel by channel would not give the same bits.

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
    grid = image_tokens(image.width, image.height, spec)
    return transform_image(decode_image(image, limits), (grid.columns * spec.cell, grid.rows * spec.cell))


def image_encoder(spec: ImageSpec, ids: SpecialIds) -> ImageEncoder:
    """mistral-common's encoder, which decodes and preprocesses every image it meets."""
    return ImageEncoder(_config(spec), SpecialImageIDs(img=ids.img, img_break=ids.img_break, img_end=ids.img_end))


class SizeEncoder(ImageEncoder):
    """mistral-common's encoder without the pixels: it knows an image by its size, which ``chunk`` writes into an address."""

    def __init__(self, spec: ImageSpec, ids: SpecialIds) -> None:
        super().__init__(_config(spec), SpecialImageIDs(img=ids.img, img_break=ids.img_break, img_end=ids.img_end))
        self._spec = spec
        self._ids = ids

    @staticmethod
    def chunk(image: EncodedImage) -> ImageURLChunk:
        """What stands for ``image`` in a request."""
        return ImageURLChunk(image_url=f"size:{image.width}x{image.height}")

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        """The tokens, and no pixels."""
        import numpy as np

        assert isinstance(content, ImageURLChunk)
        width, height = content.get_url().removeprefix("size:").split("x")
        tokens = image_token_ids(image_tokens(int(width), int(height), self._spec), self._ids)
        return ImageEncoding(tokens=tokens, image=np.zeros((3, 0, 0), dtype=np.float32))


def _config(spec: ImageSpec) -> ImageConfig:
    return ImageConfig(image_patch_size=spec.patch_size, max_image_size=spec.max_size, spatial_merge_size=spec.merge)
