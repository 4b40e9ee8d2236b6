"""Reads what an image file says about itself, without decoding it: format, size, orientation, and which bytes its pixels need.

Four formats: PNG, JPEG, WebP, GIF. The first bytes decide, never a name or a media type. Each parser walks its format's blocks once, with a
bound on their number, and keeps the ones that make up the (first) picture: text, colour profiles, thumbnails, later frames and whatever is
appended to the file never reach a decoder, so a bomb in them is never unpacked.

Exercise it: ``pytest tests/ms4_train/untrusted/test_image_header.py``.

Not covered: orientation in XMP (cameras write EXIF); colour profiles, which no trainer or server of this model applies.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from ms4_train.errors import ImageError

ImageFormat = Literal["PNG", "JPEG", "WEBP", "GIF"]

MAX_BLOCKS = 200_000
"""Blocks of one file. A GIF of 32 MiB in full blocks has 130,000; an attack would make millions of tiny ones."""

MAX_EXIF_ENTRIES = 1000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers that carry the size: SOF0 to SOF15, without the three of that range that mean something else."""
_JPEG_SCAN = 0xDA
_JPEG_ADOBE = 0xEE
_ORIENTATION_TAG, _SHORT = 0x0112, 3


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What stands in a file's header.

    Attributes:
        format: by content.
        width: stored width in pixels, before ``orientation`` is applied.
        height: stored height.
        orientation: EXIF orientation, 1 (as stored) to 8.
        scans: passes over the picture that a decoder makes: many in a progressive JPEG, else 1.
        kept: (start, stop) of the bytes that a decoder needs, in order.
        suffix: bytes to append to them.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int
    scans: int
    kept: tuple[tuple[int, int], ...]
    suffix: bytes = b""

    @property
    def displayed_size(self) -> tuple[int, int]:
        """Width and height after orientation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_image_header(handle: BinaryIO) -> ImageHeader:
    """Parse the header of an open image file of bounded size.

    Raises:
        ImageError: not one of the four formats, truncated, malformed, or in too many pieces.
    """
    reader = _Reader(handle)
    head = reader.at(0, 16, at_most=True)
    if not head:
        raise ImageError("is empty.", fix="give an image.")
    for matches, parse in _PARSERS:
        if matches(head):
            header = parse(reader)
            if header.width < 1 or header.height < 1:
                raise ImageError("has no pixels.", fix="give an image.")
            return header
    raise ImageError(f"is {_guess(head)}, not a PNG, JPEG, WebP or GIF image.", fix="convert it to PNG or JPEG.")


def _guess(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    known = {
        b"<": "XML or HTML text (SVG is not read)",
        b"BM": "a BMP",
        b"II": "a TIFF",
        b"MM": "a TIFF",
        b"%PDF": "a PDF",
        b"PK": "an archive",
    }
    return next((name for start, name in known.items() if text.startswith(start)), "of an unknown kind")


class _Reader:
    """Bounded reads at offsets."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.size = handle.seek(0, 2)
        self._blocks = 0

    def at(self, offset: int, count: int, *, at_most: bool = False) -> bytes:
        self._handle.seek(offset)
        data = self._handle.read(count)
        if len(data) < count and not at_most:
            raise truncated()
        return data

    def count_block(self) -> None:
        self._blocks += 1
        if self._blocks > MAX_BLOCKS:
            raise ImageError(f"is cut into more than {MAX_BLOCKS:,} blocks.", fix="save it again with another program.")


def truncated() -> ImageError:
    """The error of a file that ends too early."""
    return ImageError("ends before the picture does (truncated).", fix="get the file again from its source.")


def _malformed(what: str) -> ImageError:
    return ImageError(f"is malformed ({what}).", fix="save it again with another program, or get it again from its source.")


def _parse_png(reader: _Reader) -> ImageHeader:
    offset = len(_PNG_SIGNATURE)
    kept = [(0, offset)]
    width = height = 0
    orientation = 1
    is_first = True
    while True:
        reader.count_block()
        length, kind = struct.unpack(">I4s", reader.at(offset, 8))
        stop = offset + 12 + length
        if stop > reader.size:
            raise truncated()
        if is_first:
            if kind != b"IHDR" or length != 13:
                raise _malformed("it does not begin with IHDR")
            width, height = struct.unpack(">II", reader.at(offset + 8, 8))
            is_first = False
        if kind in _PNG_KEPT:
            kept.append((offset, stop))
        elif kind == b"eXIf":
            orientation = _exif_orientation(reader, offset + 8, length)
        offset = stop
        if kind == b"IEND":
            return ImageHeader("PNG", width, height, orientation, 1, _joined(kept))


def _parse_jpeg(reader: _Reader) -> ImageHeader:
    offset = 2
    kept = [(0, 2)]
    size = (0, 0)
    orientation = components = 0
    is_progressive = False
    while True:
        reader.count_block()
        prefix, marker = reader.at(offset, 2)
        if prefix != 0xFF:
            raise _malformed("a marker is missing")
        if marker == 0xFF:  # a fill byte before a marker
            offset += 1
            continue
        if marker in (0x00, 0x01, 0xD8, 0xD9) or 0xD0 <= marker <= 0xD7:
            raise _malformed("its picture does not begin")
        (length,) = struct.unpack(">H", reader.at(offset + 2, 2))
        stop = offset + 2 + length
        if marker == _JPEG_SCAN:
            break
        if length < 2 or stop > reader.size:
            raise truncated()
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack(">HHB", reader.at(offset + 5, 5))
            size, is_progressive = (width, height), marker not in (0xC0, 0xC1)
        if marker == 0xE1 and not orientation and reader.at(offset + 4, 6, at_most=True) == b"Exif\0\0":
            orientation = _exif_orientation(reader, offset + 10, length - 8)
        # APP0 and Adobe's segment say how colours are stored; all other application segments and comments are metadata.
        if marker in (0xE0, _JPEG_ADOBE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append((offset, stop))
        offset = stop
    scans = 1
    if is_progressive or reader.at(offset + 4, 1)[0] != components:
        # In compressed data the byte FF is always followed by 00 or a restart marker, so this counts scans and nothing else.
        scans = reader.at(offset, reader.size - offset).count(b"\xff\xda")
    return ImageHeader("JPEG", *size, orientation or 1, scans, _joined([*kept, (offset, reader.size)]))


def _parse_webp(reader: _Reader) -> ImageHeader:
    (riff,) = struct.unpack("<I", reader.at(4, 4))
    end = 8 + riff
    if end > reader.size:
        raise truncated()
    size: tuple[int, int] | None = None
    orientation = 1
    offset = 12
    while offset + 8 <= end:
        reader.count_block()
        kind, length = struct.unpack("<4sI", reader.at(offset, 8))
        start, stop = offset + 8, offset + 8 + length
        if stop > end:
            raise truncated()
        if size is None:
            size = _webp_size(kind, reader.at(start, min(length, 10)))
        elif kind == b"EXIF":
            lead = 6 if reader.at(start, 6, at_most=True) == b"Exif\0\0" else 0
            orientation = _exif_orientation(reader, start + lead, length - lead)
        offset = stop + length % 2
    if size is None:
        raise truncated()
    return ImageHeader("WEBP", *size, orientation, 1, ((0, end),))


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if len(body) == 10 and kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if len(body) == 10 and kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if len(body) >= 5 and kind == b"VP8L" and body[0] == 0x2F:
        (bits,) = struct.unpack("<I", body[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise _malformed("it does not begin with a picture")


def _parse_gif(reader: _Reader) -> ImageHeader:
    width, height, flags = struct.unpack("<HHB", reader.at(6, 5))
    offset = 13 + _gif_table(flags)
    kept = [(0, offset)]
    while True:
        (kind,) = reader.at(offset, 1)
        if kind == 0x21:  # an extension; only the graphic control says how the frame is drawn
            (label,) = reader.at(offset + 1, 1)
            stop = _gif_blocks(reader, offset + 2)
            if label == 0xF9:
                kept = [kept[0], (offset, stop)]
            offset = stop
        elif kind == 0x2C:
            left, top, frame_width, frame_height, flags = struct.unpack("<HHHHB", reader.at(offset + 1, 9))
            stop = _gif_blocks(reader, offset + 10 + _gif_table(flags) + 1)
            # Pillow grows the canvas to hold a frame that lies beyond it.
            size = max(width, left + frame_width), max(height, top + frame_height)
            return ImageHeader("GIF", *size, 1, 1, _joined([*kept, (offset, stop)]), suffix=b";")
        else:
            raise _malformed("it holds no frame")


def _gif_table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(reader: _Reader, offset: int) -> int:
    """The end of a chain of sub-blocks."""
    while True:
        reader.count_block()
        (length,) = reader.at(offset, 1)
        offset += 1 + length
        if not length:
            return offset


def _exif_orientation(reader: _Reader, start: int, length: int) -> int:
    """Orientation in the first directory of a TIFF block; 1 where there is none, or it makes no sense.

    Not Pillow's parser: one number is needed, and that one reads every entry's data and warns of each that it doubts.
    """
    order = {b"II": "<", b"MM": ">"}.get(reader.at(start, 2, at_most=True)) if length >= 8 else None
    if order is None:
        return 1
    (first,) = struct.unpack(f"{order}I", reader.at(start + 4, 4))
    if first + 2 > length:
        return 1
    (count,) = struct.unpack(f"{order}H", reader.at(start + first, 2))
    count = min(count, MAX_EXIF_ENTRIES, (length - first - 2) // 12)
    entries = reader.at(start + first + 2, 12 * count)
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHIH2x", entries):
        if (tag, kind, number) == (_ORIENTATION_TAG, _SHORT, 1) and 1 <= value <= 8:
            return value
    return 1


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges with neighbours merged."""
    out: list[tuple[int, int]] = []
    for start, stop in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return tuple(out)


_PARSERS: tuple[tuple[Callable[[bytes], bool], Callable[[_Reader], ImageHeader]], ...] = (
    (lambda head: head.startswith(_PNG_SIGNATURE), _parse_png),
    (lambda head: head.startswith(b"\xff\xd8\xff"), _parse_jpeg),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", _parse_webp),
    (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), _parse_gif),
)
