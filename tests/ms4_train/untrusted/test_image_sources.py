"""Where images may come from: every source that works, and every way around the root folder."""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path

import pytest
from support.images import data_url, encoded, picture

from ms4_train.errors import ImageError, ImageRefusedError
from ms4_train.untrusted import ImageLimits, ImageReader

PNG = encoded(picture(30, 20))


@pytest.fixture
def reader(tmp_path: Path) -> ImageReader:
    """A root with ``a.png`` and ``sub/b.png``; ``secret.png`` lies beside the root."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for path in (root / "a.png", root / "sub" / "b.png", tmp_path / "secret.png", tmp_path / "root-too.png"):
        path.write_bytes(PNG)
    return ImageReader(root=root)


@pytest.mark.parametrize("path", ["a.png", "./a.png", "sub/b.png", "sub/../a.png"])
def test_paths_below_the_root_are_read(reader: ImageReader, path: str) -> None:
    assert reader.root is not None
    for spelled in (path, str(reader.root / path)):
        image = reader.read_reference(spelled)
        assert (image.width, image.height, image.data) == (30, 20, None)
        assert image.path == (reader.root / path).resolve()


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/passwd",
        "link.png",
        "linked/secret.png",
        "../root-too.png",
        "..",
        "a.png/../../secret.png",
    ],
)
def test_paths_out_of_the_root_are_refused(reader: ImageReader, path: str) -> None:
    assert reader.root is not None
    (reader.root / "link.png").symlink_to(reader.root.parent / "secret.png")
    (reader.root / "linked").symlink_to(reader.root.parent)
    with pytest.raises(ImageRefusedError, match="leads out of the images' folder"):
        reader.read_reference(path)


def test_links_that_stay_inside_are_read(reader: ImageReader, tmp_path: Path) -> None:
    assert reader.root is not None
    (reader.root / "inner.png").symlink_to("sub/b.png")
    assert reader.read_reference("inner.png").path == (reader.root / "sub" / "b.png").resolve()
    (tmp_path / "alias").symlink_to(reader.root)  # a root that is a link itself
    assert ImageReader(root=tmp_path / "alias").read_reference("a.png").width == 30


def test_without_a_root_no_file_is_read(reader: ImageReader) -> None:
    assert reader.root is not None
    with pytest.raises(ImageRefusedError, match="not read here"):
        ImageReader().read_reference(str(reader.root / "a.png"))


@pytest.mark.parametrize("path", ["", "gone.png", "sub", "a\0b.png", "x" * 5000])
def test_paths_that_name_no_file(reader: ImageReader, path: str) -> None:
    with pytest.raises(ImageError) as caught:
        reader.read_reference(path)
    assert not isinstance(caught.value, ImageRefusedError)
    assert caught.value.fix


def test_a_pipe_does_not_hang(reader: ImageReader) -> None:
    assert reader.root is not None
    os.mkfifo(reader.root / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        reader.read_reference("pipe.png")


@pytest.mark.parametrize(
    "reference", ["file:///etc/passwd", "FILE:a.png", "file://localhost/a.png", "ftp://x/a.png", "javascript:alert(1)", "gopher://x"]
)
def test_other_schemes_are_refused(reader: ImageReader, reference: str) -> None:
    with pytest.raises(ImageRefusedError, match="are not read"):
        reader.read_reference(reference)


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/a.png", "https://example.org/a.png", "HTTP://169.254.169.254/latest"])
def test_remote_images_are_refused_without_touching_the_network(
    reader: ImageReader, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", touched)
    monkeypatch.setattr(socket, "create_connection", touched)
    with pytest.raises(ImageRefusedError, match=r"is not fetched.*allowed_hosts"):
        reader.read_reference(reference)


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/svg+xml", "image/png;charset=utf-8", "IMAGE/PNG"])
def test_data_urls(media_type: str) -> None:
    image = ImageReader().read_reference(data_url(PNG, media_type))
    assert (image.width, image.data, image.path) == (30, PNG, None)


GOOD = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "reference",
    [
        f"data:text/html;base64,{GOOD}",
        f"data:;base64,{GOOD}",
        f"data:image/png,{GOOD}",
        f"data:image/png;base64,{GOOD[:40]} {GOOD[40:]}",
        f"data:image/png;base64,{GOOD[:40]}\n{GOOD[40:]}",
        f"data:image/png;base64,{GOOD[:-1]}",
        f"data:image/png;base64,é{GOOD}",
        f"data:image/png;base64,{GOOD.replace('+', '-').replace('/', '_')}!",
        "data:image/png;base64,",
        "data:",
    ],
)
def test_malformed_data_urls_are_refused(reference: str) -> None:
    with pytest.raises(ImageError) as caught:
        ImageReader().read_reference(reference)
    assert caught.value.fix


def test_large_base64_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *arguments, **options: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than 1,000 bytes"):
        ImageReader(limits=ImageLimits(max_bytes=1000)).read_base64("A" * 2000)


def test_limits_hold_for_every_source(reader: ImageReader) -> None:
    small = ImageReader(root=reader.root, limits=ImageLimits(max_side=29))
    for read in (
        lambda: small.read_bytes(PNG),
        lambda: small.read_base64(GOOD),
        lambda: small.read_reference("a.png"),
        lambda: small.read_reference(data_url(PNG)),
    ):
        with pytest.raises(ImageError, match="at most 29"):
            read()
