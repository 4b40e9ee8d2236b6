"""Reads the image parts of a message, and the images that a row keeps in a column of its own.

Understood: ``{"type": "image_url", "image_url": {"url": ...}}`` (OpenAI; the address may stand there without the object);
``{"type": "image", ...}`` with one of ``url``, ``path``, ``base64`` or ``image`` (transformers; ``image`` may be an address, a path, bytes,
or the ``{"bytes", "path"}`` of a Parquet column); and ``{"type": "image"}`` alone, which takes the next entry of the row's ``images``.

Exercise it: ``pytest tests/ms4_train/chat/test_image_fields.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ms4_train.chat.types import ImagePart
from ms4_train.errors import ImageError, ImageRefusedError, RowError
from ms4_train.untrusted import EncodedImage, ImageReader

IMAGE_TYPES = ("image", "image_url")
IMAGE_ROLES = ("user", "tool")
"""Who may show an image: those whose messages mistral-common accepts one in."""

_SOURCES = ("url", "path", "base64", "image")
_FORM_FIX = 'write {"type": "image_url", "image_url": {"url": ...}}, or {"type": "image", "path": ...}.'


class RowImages:
    """Reads the images of one row in the order in which they are met.

    Args:
        reader: the policy; None refuses every image.
        column: the row's ``images`` list, or None.

    Raises:
        RowError: ``bad-image``: the column is not a list.
    """

    def __init__(self, reader: ImageReader | None, column: Any = None) -> None:
        if column is not None and (not isinstance(column, Sequence) or isinstance(column, str | bytes)):
            raise RowError("must be a list of images.", row_code="bad-image", key="images", fix="check data.*.fields.images.")
        self._reader = reader
        self._column: Sequence[Any] = column if column is not None else ()
        self._used = 0

    def read_part(self, part: Mapping[str, Any], key: str, role: str) -> ImagePart:
        """The image of a content part whose type is one of ``IMAGE_TYPES``.

        Raises:
            RowError: ``unsupported-content`` without a policy or in another role's message; ``image-refused``, ``bad-image`` or
                ``image-count``.
        """
        if self._reader is None:
            raise RowError(
                "images are not read here.",
                row_code="unsupported-content",
                key=key,
                fix="use a model with vision (in training set data.images too), or give text parts only.",
            )
        if role not in IMAGE_ROLES:
            raise RowError(
                f"the message of the {role} holds an image.", row_code="unsupported-content", key=key, fix="put images into user messages."
            )
        if part["type"] == "image_url":
            value = part.get("image_url")
            reference = value.get("url") if isinstance(value, Mapping) else value
            if not isinstance(reference, str):
                raise _bad_image("the image part has no address.", f"{key}.image_url")
            return self._part(reference, key)
        given = [name for name in _SOURCES if part.get(name) is not None]
        if len(given) > 1:
            raise _bad_image(f"the image part has {' and '.join(given)}; one source is needed.", key)
        if given:
            return self._part(part[given[0]], f"{key}.{given[0]}", given[0])
        if self._used >= len(self._column):
            what = f"the row's images column holds {len(self._column)}" if self._column else "the row has no images column"
            raise RowError(
                f"this is image {self._used + 1} of the messages without a source, but {what}.",
                row_code="image-count",
                key=key,
                fix="give the part a source, or the row's images column one entry for each such part.",
            )
        self._used += 1
        return self._part(self._column[self._used - 1], f"images[{self._used - 1}]")

    def check_all_used(self) -> None:
        """Refuse a row whose images column holds more than its messages name.

        Raises:
            RowError: ``image-count``, or ``unsupported-content`` without a policy.
        """
        if self._used < len(self._column):
            raise RowError(
                f"holds {len(self._column)} images, but the messages have places for {self._used}.",
                row_code="unsupported-content" if self._reader is None else "image-count",
                key="images",
                fix='write one {"type": "image"} part into the messages where each image belongs, or remove the column.',
            )

    def _part(self, source: Any, key: str, kind: str = "image") -> ImagePart:
        try:
            return ImagePart(self._read(source, key, kind))
        except ImageRefusedError as error:
            raise RowError(error.message, row_code="image-refused", key=key, fix=error.fix) from None
        except ImageError as error:
            name = f"the image {error.file}" if error.file else "the image"
            raise RowError(f"{name} {error.message}", row_code="bad-image", key=key, fix=error.fix) from None

    def _read(self, source: Any, key: str, kind: str) -> EncodedImage:
        assert self._reader is not None
        if kind == "image" and isinstance(source, Mapping):
            # Arrow fills the field that a row does not use with null.
            if source.get("bytes") is not None:
                source = source["bytes"]
            else:
                source, kind = source.get("path"), "path"
        if kind == "image" and isinstance(source, bytes):
            return self._reader.read_bytes(source)
        if not isinstance(source, str):
            raise _bad_image(f"an image cannot be given as {_kind_name(source)}.", key)
        if kind == "base64":
            return self._reader.read_base64(source)
        return self._reader.read_path(source) if kind == "path" else self._reader.read_reference(source)


def _kind_name(value: Any) -> str:
    return "nothing (null)" if value is None else f"a value of type {type(value).__name__}"


def _bad_image(message: str, key: str) -> RowError:
    return RowError(message, row_code="bad-image", key=key, fix=_FORM_FIX)
