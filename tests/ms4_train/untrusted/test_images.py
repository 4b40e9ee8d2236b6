"""Decoded pixels against Pillow's and mistral-common's, limits, and files that change after they were checked."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.image import _convert_to_rgb
from PIL import Image, ImageOps
from support.images import blank_png, encoded, exif, hostile_bytes, picture, progressive_scans

from ms4_train.errors import ImageError, UntrustedInputError
from ms4_train.untrusted import EncodedImage, ImageLimits, decode_image, images, inspect_image

KINDS = [
    ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "P", {}), ("PNG", "P", {"transparency": 3}),
    ("PNG", "L", {"transparency": 100}), ("PNG", "RGB", {"transparency": (1, 2, 3)}), ("PNG", "I;16", {}), ("PNG", "1", {}),
    ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("GIF", "P", {"transparency": 5}), ("GIF", "L", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS)
def test_pixels_are_mistral_commons(kind: str, mode: str, options: dict[str, object]) -> None:
    data = encoded(picture(61, 47, mode), kind, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(_convert_to_rgb(opened))
    decoded = decode_image(inspect_image(data))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), expected)


def test_a_jpeg_keeps_what_says_how_its_colours_are_stored() -> None:
    jfif = encoded(picture(61, 47), "JPEG", subsampling=0)
    start = 4 + int.from_bytes(jfif[4:6], "big")
    # Adobe's segment with transform 0: the three components are red, green and blue, not luma and chroma.
    adobe = jfif[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + jfif[start:]
    with Image.open(io.BytesIO(adobe)) as opened:
        expected = np.asarray(opened)
    decoded = np.asarray(decode_image(inspect_image(adobe)))
    assert np.array_equal(decoded, expected)
    assert not np.array_equal(decoded, np.asarray(decode_image(inspect_image(jfif))))


def test_pixels_are_converted_alike_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image = inspect_image(encoded(picture(61, 47, "RGBA")))
    whole = np.asarray(decode_image(image))
    monkeypatch.setattr(images, "_STRIP_PIXELS", 61 * 5)
    assert np.array_equal(np.asarray(decode_image(image)), whole)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    data = encoded(picture(30, 20), kind, exif=exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened)
        unturned = np.asarray(opened.convert("RGB"))
    image = inspect_image(data)
    decoded = decode_image(image)
    assert (image.width, image.height) == decoded.size == expected.size
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))
    # Negative control: the picture is not its own mirror.
    assert orientation == 1 or not np.array_equal(np.asarray(decoded), unturned)


@pytest.mark.parametrize("name", ["animated png", "animated gif", "animated webp"])
def test_the_first_frame_of_an_animation_is_read(name: str) -> None:
    data = hostile_bytes(name)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
        expected = np.asarray(_convert_to_rgb(opened))
    assert np.array_equal(np.asarray(decode_image(inspect_image(data))), expected)


def test_files_are_inspected_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "wrong.svg"  # the content decides, not the name
    path.write_bytes(encoded(picture(30, 20), "JPEG"))
    image = inspect_image(path)
    assert (image.data, image.path, image.width, image.height, image.size_bytes) == (None, path.resolve(), 30, 20, 0)
    assert np.array_equal(np.asarray(decode_image(image)), np.asarray(decode_image(inspect_image(path.read_bytes()))))


def test_a_header_does_not_need_the_pixels() -> None:
    assert (inspect_image(hostile_bytes("damaged pixels")).width, inspect_image(hostile_bytes("pixels that end early")).width) == (40, 400)


def test_limits(tmp_path: Path) -> None:
    data = encoded(picture(30, 20))
    assert inspect_image(data, ImageLimits(max_bytes=len(data), max_pixels=600, max_side=30)).width == 30
    for limits, message in (
        (ImageLimits(max_bytes=len(data) - 1), "at most"),
        (ImageLimits(max_pixels=599), "600 in all; at most 599"),
        (ImageLimits(max_side=29), "a side may have at most 29"),
    ):
        for source in (data, tmp_path / "a.png"):
            (tmp_path / "a.png").write_bytes(data)
            with pytest.raises(ImageError, match=message):
                inspect_image(source, limits)
        with pytest.raises(ImageError, match=message):
            decode_image(inspect_image(data), limits)
    webp = encoded(picture(30, 20), "WEBP")
    inspect_image(webp, ImageLimits(max_pixels=1200))
    with pytest.raises(ImageError, match="of a WEBP"):
        inspect_image(webp, ImageLimits(max_pixels=1199))


def test_scans_times_pixels_are_bounded() -> None:
    assert inspect_image(progressive_scans(320, 240, 1000)).width == 320
    with pytest.raises(ImageError, match="1,000 scans"):
        inspect_image(progressive_scans(1000, 1000, 1000))


def test_bytes_of_several_scans_are_bounded() -> None:
    # The limit on scans alone would let one through that takes a second: what is in them costs as much as their number.
    data = progressive_scans(64, 48, 10)
    padding = b"\xff\xda" + data.split(b"\xff\xda")[-1][:-2].ljust(11 << 20, b"\1")
    with pytest.raises(ImageError, match="bytes are read of such a JPEG"):
        inspect_image(data[:-2] + padding + b"\xff\xd9")


def test_a_photograph_fits_and_the_fix_names_the_setting() -> None:
    assert inspect_image(blank_png(4032, 3024)).width == 4032
    with pytest.raises(ImageError, match=r"raise data\.images\.max_pixels"):
        inspect_image(blank_png(4100, 3100))
    with pytest.raises(ImageError, match=r"raise data\.images\.max_side"):
        inspect_image(blank_png(16_385, 1))


def test_converted_and_turned_pictures_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow's readers stand in reference cycles: what is not closed stays until the next collection, 50 MB for the largest.
    from PIL import JpegImagePlugin

    made: list[Any] = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda self: (made.append(self), load(self))[1])
    for data in (encoded(picture(30, 20, "CMYK"), "JPEG"), encoded(picture(30, 20), "JPEG", exif=exif(6))):
        decode_image(inspect_image(data)).getpixel((0, 0))
        with pytest.raises(ValueError, match="closed image"):
            made[-1].getpixel((0, 0))


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(blank_png(30, 20))
    image = inspect_image(path)
    path.write_bytes(blank_png(31, 20))
    with pytest.raises(ImageError, match="has changed"):
        decode_image(image)
    path.unlink()
    with pytest.raises(UntrustedInputError, match="no such file"):
        decode_image(image)
    other = tmp_path / "other.png"
    other.write_bytes(blank_png(30, 20))
    path.symlink_to(other)
    with pytest.raises(ImageError, match="symbolic link"):
        decode_image(image)
    path.unlink()
    path.write_bytes(blank_png(30, 20))
    assert decode_image(image).size == (30, 20)


def test_digests_tell_images_apart(tmp_path: Path) -> None:
    first, second = encoded(picture(30, 20)), encoded(picture(30, 20, seed=1))
    assert inspect_image(first).digest() == inspect_image(bytes(first)).digest() != inspect_image(second).digest()
    (tmp_path / "a.png").write_bytes(first)
    (tmp_path / "b.png").write_bytes(first)
    assert inspect_image(tmp_path / "a.png").digest() != inspect_image(tmp_path / "b.png").digest()


def test_a_record_shows_no_bytes() -> None:
    assert len(repr(inspect_image(encoded(picture(300, 200))))) < 200


_SEEDS = [encoded(picture(20, 10, mode), kind, **options) for kind, mode, options in KINDS]


@given(st.sampled_from(_SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_only_our_error_escapes_from_damaged_files(seed: bytes, edits: list[tuple[float, int]]) -> None:
    data = bytearray(seed)
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    limits = ImageLimits(max_pixels=1_000_000)
    with contextlib.suppress(ImageError):
        image = inspect_image(bytes(data), limits)
        assert decode_image(image, limits).size == (image.width, image.height)


def test_an_image_without_bytes_is_an_error() -> None:
    with pytest.raises(ImageError, match="empty"):
        decode_image(EncodedImage(None, None, 1, 1))
