"""Image files for tests: ordinary ones of every kind, and hostile ones, made from scratch so that each holds exactly one trick.

``picture`` draws pixels that differ everywhere, so that a turned, cut or mirrored copy is told from the original.
"""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise over a slope."""
    rng = np.random.default_rng(seed)
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1, "LA": 2, "P": 1, "I;16": 1, "1": 1}[mode]
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    slope = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, channels))
    values = (slope + rng.integers(0, 56, (height, width, channels))).astype(np.uint8)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(values[..., 0]).convert("RGB").quantize(32)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """The bytes as a base64 data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation, as Pillow writes it."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def blank_png(width: int, height: int, *, extra: bytes = b"", bits: int = 1, colour: int = 0, data: bytes | None = None) -> bytes:
    """A PNG of one colour, compressed as far as it goes; ``extra`` chunks stand before the pixels."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    if data is None:
        packer = zlib.compressobj(9)
        row = bytes(1 + (width * channels * bits + 7) // 8)
        rows = max(1, (1 << 20) // len(row))
        data = b"".join([*(packer.compress(row * min(rows, height - top)) for top in range(0, height, rows)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(size: int) -> bytes:
    """``size`` zeros (whole megabytes), compressed."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the next megabyte compresses to the same bytes, so they are repeated instead of made.
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = b"\x03\x00" + struct.pack(">I", (size % 65521) << 16 | 1)
    return first + again * ((size >> 20) - 1) + end


def gif_with_comments(count: int) -> bytes:
    """A GIF whose comment comes in ``count`` small pieces, which a decoder that joins them one by one copies again and again."""
    data = encoded(picture(8, 8, "P"), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"!\xfe" + b"\x01x" * count + b"\0" + data[start:]


def exif_copies(entries: int, size: int) -> bytes:
    """A PNG whose EXIF entries all point to the same ``size`` bytes: whoever copies each one's data needs their product."""
    directory = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", 0x0200 + index, 7, size, 8) for index in range(entries))
    block = b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + directory + b"\0\0\0\0"
    return blank_png(8, 8, extra=chunk(b"eXIf", block))


def progressive_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("L", (width, height), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def _animated(kind: str) -> bytes:
    frames = [picture(40, 30, seed=seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))


HARMLESS: dict[str, Callable[[], bytes]] = {
    "animated png": lambda: _animated("PNG"),
    "animated gif": lambda: _animated("GIF"),
    "animated webp": lambda: _animated("WEBP"),
    "cmyk jpeg": lambda: encoded(picture(40, 30, "CMYK"), "JPEG"),
    "16-bit png": lambda: encoded(picture(40, 30, "I;16")),
    "rotated jpeg": lambda: encoded(picture(40, 30), "JPEG", exif=exif(6)),
    "zip bomb in iCCP": lambda: blank_png(40, 30, extra=chunk(b"iCCP", b"p\0\0" + bomb(1 << 30))),
    "zip bomb in zTXt": lambda: blank_png(40, 30, extra=chunk(b"zTXt", b"k\0\0" + bomb(1 << 30))),
    "many zip bombs in zTXt": lambda: blank_png(40, 30, extra=chunk(b"zTXt", b"k\0\0" + bomb(1 << 20)) * 2000),
    "zip bomb behind the pixels": lambda: blank_png(40, 30, data=bomb(1 << 30)),
    "exif entries of the same bytes": lambda: exif_copies(60_000, 1 << 20),
    "gif with a comment in pieces": lambda: gif_with_comments(190_000),
    "a png with an archive behind it": lambda: encoded(picture(40, 30)) + b"PK\x03\x04" + bytes(1000),
    "a png with an svg in its text": lambda: blank_png(40, 30, extra=chunk(b"tEXt", b"k\0<svg onload='alert(1)'/>")),
}
"""Files with a trick that comes to nothing: they are read as the small picture they hold (40 x 30 but for the GIF comment and the EXIF)."""

HOSTILE: dict[str, Callable[[], bytes]] = {
    "144 megapixels": lambda: blank_png(12_000, 12_000),
    "256 megapixels": lambda: blank_png(16_000, 16_000),
    "65535 x 1": lambda: blank_png(65_535, 1),
    "1 x 65535": lambda: blank_png(1, 65_535),
    "2 gigapixels a side": lambda: blank_png(2**31 - 1, 2**31 - 1, data=b""),
    "0 x 0": lambda: blank_png(0, 0, data=zlib.compress(b"")),
    "truncated png": lambda: encoded(picture(400, 300))[:-5000],
    "truncated jpeg": lambda: encoded(picture(400, 300), "JPEG")[:-5000],
    "truncated webp": lambda: encoded(picture(400, 300), "WEBP")[:-500],
    "truncated gif": lambda: encoded(picture(400, 300, "P"), "GIF")[:-5000],
    "header of a jpeg only": lambda: encoded(picture(40, 30), "JPEG")[:100],
    "damaged pixels": lambda: blank_png(40, 30, data=b"\x78\x9c" + bytes(100)),
    "pixels that end early": lambda: blank_png(400, 300, data=zlib.compress(bytes(100))),
    "0 bytes": lambda: b"",
    "1 byte": lambda: b"\x89",
    "svg": lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": lambda: b"<html><script>alert(1)</script>",
    "bmp": lambda: encoded(picture(40, 30), "BMP"),
    "tiff": lambda: encoded(picture(40, 30), "TIFF"),
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": lambda: b"%PDF-1.7\n",
    "gif that is a script": lambda: b"GIF89a/*" + bytes(20) + b"*/=alert(1)",
    "a picture inside a zip": lambda: b"PK\x03\x04" + encoded(picture(40, 30)),
    "gif canvas of 4 gigapixels": lambda: b"GIF89a\xff\xff\xff\xff" + encoded(picture(8, 8, "P"), "GIF")[10:],
    "webp that says 256 megapixels": lambda: _webp_canvas(16_000, 16_000),
    "webp of two sizes": lambda: _webp_canvas(50, 50),
    "millions of tiny blocks": lambda: gif_with_comments(8_000_000),
    "png of millions of chunks": lambda: PNG_SIGNATURE + encoded(picture(8, 8))[8:33] + chunk(b"aaAa", b"") * 2_000_000,
    "jpeg of a thousand scans": lambda: progressive_scans(5000, 5000, 1000),
    "more than 32 MiB": lambda: bytes(33 << 20),
}
"""Files that are refused with a typed error, while they are inspected or while they are decoded."""


@functools.cache
def hostile_bytes(name: str) -> bytes:
    """The file called ``name`` in ``HOSTILE`` or ``HARMLESS``."""
    return {**HOSTILE, **HARMLESS}[name]()


def _webp_canvas(width: int, height: int) -> bytes:
    """A WebP whose extended header says another size than its picture."""
    inner = encoded(picture(40, 30), "WEBP")[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + extended + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body
