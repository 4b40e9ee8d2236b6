"""Where an image of a message may come from: bytes, base64 data URLs, files below one folder, and (only if allowed) named hosts.

An ``ImageReader`` is the policy of one data set or one server. Everything else is refused with ``ImageRefusedError``: paths that lead out
of the root folder (by ``..``, an absolute path or a symbolic link), ``file://``, hosts that are not listed.

Exercise it: ``pytest tests/ms4_train/untrusted/test_image_sources.py``.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ms4_train.errors import ImageError, ImageRefusedError, UntrustedInputError
from ms4_train.untrusted.images import DEFAULT_LIMITS, EncodedImage, ImageLimits, inspect_image

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]+(?:;[a-zA-Z0-9=._-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Finds images and checks their headers.

    Attributes:
        root: folder that local paths start at and may not leave; None refuses local files.
        limits: what an image may be at most.
        allowed_hosts: hosts that http and https addresses may name (``host`` or ``host:port``); none by default. An address of a private
            network is only reached where it is listed as such, not through a name.
        timeout_s: seconds for one download, all in all.
    """

    root: Path | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    allowed_hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0

    def read_bytes(self, data: bytes) -> EncodedImage:
        """An image given as the bytes of its file.

        Raises:
            ImageError: see ``inspect_image``.
        """
        return inspect_image(data, self.limits)

    def read_base64(self, text: str) -> EncodedImage:
        """An image given as base64 text.

        Raises:
            ImageError: not strict base64, or see ``inspect_image``.
        """
        if len(text) > self.limits.max_bytes // 3 * 4 + 4:
            raise ImageError(f"is base64 of more than {self.limits.max_bytes:,} bytes.", fix="save it smaller.")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ImageError("is not base64.", fix="encode the file's bytes with base64, without line breaks.") from None
        return self.read_bytes(data)

    def read_reference(self, reference: str) -> EncodedImage:
        """An image named by a data URL, an http address, or a path.

        Raises:
            ImageError: it cannot be used.
            ImageRefusedError: the policy does not allow it.
        """
        scheme = _SCHEME.match(reference)
        if scheme is None:
            return self.read_path(reference)
        name = scheme.group(1).lower()
        if name == "data":
            lead = _DATA_URL.match(reference)
            if lead is None:
                raise ImageError("is not a base64 image URL.", fix="write data:image/png;base64,...")
            return self.read_base64(reference[lead.end() :])
        if name in ("http", "https"):
            # Here, for it imports the network stack, which no other source needs.
            from ms4_train.untrusted.image_fetch import fetch_image

            return self.read_bytes(fetch_image(reference, self.allowed_hosts, max_bytes=self.limits.max_bytes, timeout_s=self.timeout_s))
        if name == "file":
            raise ImageRefusedError("file:// addresses are not read.", fix="write the path itself, relative to the images' folder.")
        raise ImageRefusedError(f"addresses of the kind {name[:20]}: are not read.", fix="give a path or a data URL.")

    def read_path(self, path: str) -> EncodedImage:
        """An image in a file below the root folder; relative paths start there.

        Raises:
            ImageError: it cannot be used.
            ImageRefusedError: it lies outside the root folder, or there is none.
        """
        shown = ascii(path if len(path) <= 200 else path[:197] + "...")
        if self.root is None:
            raise ImageRefusedError(f"the local file {shown} is not read here.", fix="give the image's bytes or a data URL.")
        if not path or "\0" in path:
            raise ImageError(f"{shown} is not a path.", fix="correct the path.")
        root = os.path.realpath(self.root)
        try:
            full = os.path.realpath(Path(root) / path)
        except (OSError, ValueError):
            raise ImageError(f"{shown} is not a path.", fix="correct the path.") from None
        if os.path.commonpath([root, full]) != root:
            raise ImageRefusedError(
                f"{shown} leads out of the images' folder {root}.", fix="move the file into it, or set another data.images.root."
            )
        try:
            return inspect_image(Path(full), self.limits)
        except ImageError:
            raise
        except UntrustedInputError as error:
            raise ImageError(error.message, file=full, fix="check the path; relative paths start at the images' folder.") from None
