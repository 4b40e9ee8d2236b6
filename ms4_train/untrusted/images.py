"""The one door for image bytes: the header is checked before anything is decoded, and decoding is bounded in size.

``inspect_image`` reads a header and gives an ``EncodedImage``: where the bytes are and how large the picture is, which is all that
counting its tokens needs. ``decode_image`` turns one into pixels, later and perhaps in another process. Only PNG, JPEG, WebP and GIF are
read, told apart by content; of an animation the first frame, as mistral-common and so every server of the model has it. Grey, palette,
CMYK, 16-bit and transparent pictures become RGB exactly as mistral-common makes them (on white).

Memory while decoding, in bytes per pixel: 3 for RGB, 3 more where it is turned, 4 more where there is transparency, 6 more for a
progressive JPEG, 16 for WebP: up to 160 MB at the default limits. No other part of a file is unpacked.

Exercise it: ``pytest tests/ms4_train/untrusted/test_images.py``.

Not covered: where images may come from (``ms4_train.untrusted.image_sources``); damage inside the compressed pixels, which is found by
decoding only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ms4_train.errors import ImageError, UntrustedInputError
from ms4_train.untrusted.files import open_regular
from ms4_train.untrusted.image_header import ImageHeader, read_image_header

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SCAN_PIXELS = 125_000_000
"""Scans of a progressive JPEG times its pixels; an ordinary one has ten scans. So many take up to half a second to decode."""

MAX_SCAN_BYTES = 10 << 20
"""Of a JPEG in several scans: unpacking them takes twice as long as a baseline JPEG's. A photograph of 12 megapixels has up to 7 MB."""

_STRIP_PIXELS = 1 << 16
# The transposition that undoes each EXIF orientation, by the names in PIL.Image.Transpose.
_TRANSPOSE = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be at most.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height; half of it for WebP, whose decoder takes twice the memory of the others. A photograph of
            4032 x 3024 fits.
        max_side: the longer side.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 12_500_000
    max_side: int = 16_384


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image that was looked at but not decoded: its bytes or its file, and its size as displayed (after EXIF orientation).

    Exactly one of ``data`` and ``path`` is set. ``path`` is absolute and without symbolic links.
    """

    data: bytes | None = field(repr=False)
    path: Path | None
    width: int
    height: int

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory."""
        return len(self.data) if self.data is not None else 0

    def digest(self) -> bytes:
        """Identity of the image for fingerprints: of its bytes, or of its path and size where it lies in a file."""
        content = self.data if self.data is not None else f"{self.path}|{self.width}x{self.height}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(content, digest_size=16).digest()


def inspect_image(source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS) -> EncodedImage:
    """Check an image's header.

    Args:
        source: the file's bytes, or its path (whoever calls has decided that it may be read).
        limits: its bounds.

    Raises:
        ImageError: not an image of a known format, truncated, malformed, or past a bound.
        UntrustedInputError: the file is missing or cannot be read.
    """
    if isinstance(source, bytes):
        header = _checked_header(io.BytesIO(source), limits, None)
        return EncodedImage(source, None, *header.displayed_size)
    path = Path(os.path.realpath(source))
    with open_regular(path) as handle:
        header = _checked_header(handle, limits, path)
    return EncodedImage(None, path, *header.displayed_size)


def decode_image(image: EncodedImage, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
    """The pixels of an image: RGB, on white where it was transparent, turned as its EXIF orientation says.

    Raises:
        ImageError: its compressed pixels are damaged, or its file is another one than was inspected.
        UntrustedInputError: its file cannot be read.
    """
    path = image.path
    if path is not None and path != Path(os.path.realpath(path)):
        # A link may lead out of the folder that the path was checked against.
        raise ImageError("has become a symbolic link since it was checked.", file=path, fix="leave the images alone during a run.")
    with open_regular(path) if path is not None else io.BytesIO(image.data or b"") as handle:
        header = _checked_header(handle, limits, path)
        if header.displayed_size != (image.width, image.height):
            raise ImageError("has changed since it was checked.", file=path, fix="leave the images alone during a run.")
        data = _kept_bytes(handle, header)
    return _decode(data, header, path)


def _kept_bytes(handle: BinaryIO, header: ImageHeader) -> bytes:
    pieces = []
    for start, stop in header.kept:
        handle.seek(start)
        pieces.append(handle.read(stop - start))
    return b"".join([*pieces, header.suffix])


def _checked_header(handle: BinaryIO, limits: ImageLimits, path: Path | None) -> ImageHeader:
    size = handle.seek(0, 2)
    try:
        if size > limits.max_bytes:
            raise ImageError(f"has {size:,} bytes; at most {limits.max_bytes:,} are read.", fix="save it smaller.")
        header = read_image_header(handle)
        width, height = header.width, header.height
        shown = f"is {width:,} x {height:,} pixels"
        fix = "make the picture smaller (the model sees it at 1540 x 1540 pixels at most)"
        if max(width, height) > limits.max_side:
            raise ImageError(f"{shown}; a side may have at most {limits.max_side:,}.", fix=f"{fix}, or raise data.images.max_side.")
        most = limits.max_pixels // (2 if header.format == "WEBP" else 1)
        if width * height > most:
            raise ImageError(
                f"{shown}, {width * height:,} in all; at most {most:,} are read of a {header.format}.",
                fix=f"{fix}, or raise data.images.max_pixels.",
            )
        if header.scans > 1 and header.scans * width * height > MAX_SCAN_PIXELS:
            raise ImageError(f"{shown} in {header.scans:,} scans, which takes too long to decode.", fix="save it as a baseline JPEG.")
        if header.scans > 1 and sum(stop - start for start, stop in header.kept) > MAX_SCAN_BYTES:
            raise ImageError(
                f"has {header.scans:,} scans; at most {MAX_SCAN_BYTES:,} bytes are read of such a JPEG.", fix="save it as a baseline JPEG."
            )
    except ImageError as error:
        raise type(error)(error.message, file=path, fix=error.fix) from None
    except OSError as error:
        raise UntrustedInputError(f"cannot be read ({error.strerror}).", file=path, fix="check the disk.") from None
    return header


def _decode(data: bytes, header: ImageHeader, path: Path | None) -> Image:
    from PIL.Image import Transpose

    try:
        picture = _decode_as_stored(data, header)
        turn = _TRANSPOSE.get(header.orientation)
        if turn is None:
            return picture
        with contextlib.closing(picture):
            return picture.transpose(Transpose[turn])
    except MemoryError:
        raise ImageError("does not fit into memory.", file=path, fix="make the picture smaller.") from None
    # Pillow's decoders raise whatever their parsing trips over: SyntaxError, OSError, ValueError, struct.error, zlib.error, IndexError ...
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(f"cannot be decoded ({reason}).", file=path, fix="get the file again from its source.") from None


def _decode_as_stored(data: bytes, header: ImageHeader) -> Image:
    from PIL import GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    # The format's own class, not Image.open, which would try other formats on the same bytes.
    decoders = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
    }
    with io.BytesIO(data) as stream, decoders[header.format](stream) as picture:
        if picture.size != (header.width, header.height):
            raise ValueError("it holds two different sizes")
        picture.load()
        return _rgb(picture)


def _rgb(picture: Image) -> Image:
    """``picture`` as RGB, transparent places white, converted strip by strip: at once would take three more copies of it."""
    from PIL import Image as images

    if picture.mode == "RGB":
        return picture
    out = images.new("RGB", picture.size)
    height = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, height):
        strip = picture.crop((0, top, picture.width, min(top + height, picture.height))).convert("RGBA")
        white = images.new("RGBA", strip.size, "WHITE")
        white.paste(strip, (0, 0), strip)
        out.paste(white.convert("RGB"), (0, top))
    picture.close()  # now: Pillow's readers stand in reference cycles, so their pixels would stay until the next collection
    return out
