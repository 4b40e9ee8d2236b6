"""The encoders that mistral-common's pipelines are given: its own, and one whose tokens are the same without pixels."""

from __future__ import annotations

from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageEncoder
from support.images import encoded, picture
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import ImageSpec
from ms4_train.chat.image_encoders import SizeEncoder, image_encoder
from ms4_train.untrusted import inspect_image

RELEASE = ImageSpec(patch_size=14, max_size=1540, merge=2)


def test_the_encoder_given_to_mistral_common_is_its_own() -> None:
    assert type(image_encoder(RELEASE, tiny_tokenizer().ids)) is ImageEncoder


def test_the_encoder_by_size_gives_the_same_tokens_and_no_pixels() -> None:
    ids, image = tiny_tokenizer().ids, picture(90, 47)
    found = SizeEncoder(RELEASE, ids)(SizeEncoder.chunk(inspect_image(encoded(image))))
    assert found.tokens == image_encoder(RELEASE, ids)(ImageChunk(image=image)).tokens
    assert found.image.size == 0
