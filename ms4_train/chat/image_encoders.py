"""mistral-common's image encoder for its pipelines, and one that counts by size alone.

Apart from ``ms4_train.chat.images``, whose users need not import mistral-common.

Exercise it: ``pytest tests/ms4_train/chat/test_image_encoders.py``.
"""

from __future__ import annotations

from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, ImageEncoding, SpecialImageIDs

from ms4_train.chat.images import ImageSpec, image_token_ids, image_tokens
from ms4_train.chat.special_ids import SpecialIds
from ms4_train.untrusted import EncodedImage


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
