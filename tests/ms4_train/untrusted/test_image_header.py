"""Headers against Pillow's reading of the same files, and what is kept of a file for its pixels."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.images import PNG_SIGNATURE, blank_png, chunk, encoded, exif, picture

from ms4_train.errors import ImageError
from ms4_train.untrusted import image_header
from ms4_train.untrusted.image_header import ImageHeader, read_image_header

SIZES = [(1, 1), (17, 5), (300, 41), (64, 200)]
FORMATS = [("PNG", "RGB", {}), ("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {}),
           ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("PNG", "P", {}), ("PNG", "I;16", {})]  # fmt: skip


def header_of(data: bytes) -> ImageHeader:
    return read_image_header(io.BytesIO(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "mode", "options"), FORMATS)
def test_format_and_size_are_pillows(kind: str, mode: str, options: dict[str, object], size: tuple[int, int]) -> None:
    data = encoded(picture(*size, mode), kind, **options)
    header = header_of(data)
    with Image.open(io.BytesIO(data)) as opened:
        assert (header.format, (header.width, header.height)) == (opened.format, opened.size)
    assert header.orientation == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_pillows(kind: str, orientation: int) -> None:
    data = encoded(picture(30, 20), kind, exif=exif(orientation))
    header = header_of(data)
    with Image.open(io.BytesIO(data)) as opened:
        assert header.orientation == orientation == opened.getexif()[0x0112]
        assert header.displayed_size == ImageOps.exif_transpose(opened).size


@pytest.mark.parametrize("block", [
    b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"XX*\0\x08\0\0\0\x01\0" + bytes(12),
    b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 9),
    b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 4, 1, 6),
    b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 2, 6),
])  # fmt: skip
def test_exif_without_sense_means_no_orientation(block: bytes) -> None:
    assert header_of(blank_png(8, 8, extra=chunk(b"eXIf", block))).orientation == 1
    good = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    assert header_of(blank_png(8, 8, extra=chunk(b"eXIf", good))).orientation == 6


def test_a_jpeg_of_one_scan_is_told_from_one_of_many() -> None:
    assert header_of(encoded(picture(40, 30), "JPEG")).scans == 1
    assert header_of(encoded(picture(40, 30), "JPEG", progressive=True)).scans == 10


def test_only_what_the_pixels_need_is_kept() -> None:
    data = encoded(picture(40, 30), "JPEG", exif=exif(6), comment=b"SECRET", icc_profile=b"SECRET" * 20)
    header = header_of(data)
    kept = b"".join(data[start:stop] for start, stop in header.kept)
    assert b"SECRET" in data
    assert b"SECRET" not in kept
    assert b"Exif" not in kept
    png = blank_png(8, 8, extra=chunk(b"tEXt", b"k\0SECRET") + chunk(b"iCCP", b"SECRET")) + b"SECRET behind"
    assert b"SECRET" not in b"".join(png[start:stop] for start, stop in header_of(png).kept)
    gif = encoded(picture(40, 30, "P"), "GIF", comment=b"SECRET", save_all=True, append_images=[picture(40, 30, "P", seed=1)])
    header = header_of(gif)
    first = b"".join([*(gif[start:stop] for start, stop in header.kept), header.suffix])
    assert b"SECRET" not in first
    assert len(first) < 0.6 * len(gif)


def test_a_gif_frame_beyond_its_screen_counts() -> None:
    data = bytearray(encoded(picture(8, 8, "P"), "GIF"))
    place = data.index(b",\0\0\0\0\x08\0\x08\0")
    data[place + 1 : place + 5] = struct.pack("<HH", 30_000, 5)
    header = header_of(bytes(data))
    assert (header.width, header.height) == (30_008, 13)


@pytest.mark.parametrize("data", [
    PNG_SIGNATURE + chunk(b"IDAT", b"x") + chunk(b"IEND", b""), PNG_SIGNATURE + chunk(b"IHDR", b"short"), b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xda\0", b"\xff\xd8\xff\xe0\0\x04ab\x01", b"\xff\xd8\xff",
    b"RIFF\x10\0\0\0WEBPVP8X\0\0\0\0", b"RIFF\x04\0\0\0WEBP", b"RIFF\x20\0\0\0WEBPABCD" + bytes(28),
    b"GIF89a\x01\0\x01\0\0\0\0x", b"GIF89a",
])  # fmt: skip
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="Fix: "):
        header_of(data)


def test_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = blank_png(8, 8, extra=chunk(b"aaAa", b"") * 20)
    header_of(data)
    monkeypatch.setattr(image_header, "MAX_BLOCKS", 10)
    with pytest.raises(ImageError, match="more than 10 blocks"):
        header_of(data)


@pytest.mark.parametrize(
    ("data", "guess"), [(b"  <svg/>", "SVG"), (b"BM12", "BMP"), (b"PK\x03\x04", "archive"), (b"%PDF-", "PDF"), (b"hello", "unknown")]
)
def test_other_files_are_named(data: bytes, guess: str) -> None:
    with pytest.raises(ImageError, match=guess):
        header_of(data)


_SEEDS = [encoded(picture(20, 10, mode), kind, **options) for kind, mode, options in FORMATS]


@given(st.sampled_from(_SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_only_our_error_escapes_from_damaged_files(seed: bytes, edits: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(seed[: max(1, int(len(seed) * max(cut, 0.2)))])
    for place, value in edits:
        # Squared, so that most edits fall into the header.
        data[int(place * place * (len(data) - 1))] = value
    with contextlib.suppress(ImageError):
        header = header_of(bytes(data))
        assert all(0 <= start <= stop <= len(data) for start, stop in header.kept)
