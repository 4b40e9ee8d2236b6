"""The worker's program: what it answers, compared with mistral-common, and that it is a program of its own."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image
from support.images import encoded, picture

from ms4_train.chat.images import ImageSpec
from ms4_train.data.image_worker import (
    answer,
    image_digest,
    main_arguments,
    read_message,
    request_for,
    worker_environment,
    write_message,
)
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import EncodedImage, ImageLimits, inspect_image

SPEC, LIMITS = ImageSpec(14, 1540, 2), ImageLimits()


@pytest.mark.parametrize("size", [(28, 28), (100, 61), (1700, 40)])
def test_pixels_equal_mistral_commons(size: tuple[int, int]) -> None:
    data = encoded(picture(*size))
    reply, payload = answer(*request_for(inspect_image(data), pixels=True), SPEC, LIMITS)
    theirs = ImageEncoder(ImageConfig(14, 1540, 2), SpecialImageIDs(10, 12, 13))(ImageChunk(image=Image.open(io.BytesIO(data)))).image
    assert np.array_equal(np.frombuffer(payload, dtype=np.float32).reshape(reply["shape"]), theirs)
    assert (reply["digest"], reply["size"]) == (hashlib.blake2b(data, digest_size=16).hexdigest(), len(data))


def test_a_check_sends_no_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(40, 30)))
    image = inspect_image(tmp_path / "a.png")
    reply, payload = answer(*request_for(image, pixels=False), SPEC, LIMITS)
    assert (reply["digest"], reply["size"]) == image_digest(image, LIMITS)
    assert payload == b""


def test_a_file_that_broke_or_went_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(400, 300)))
    image = inspect_image(path)
    path.write_bytes(path.read_bytes()[:-5000])
    for pixels in (True, False):
        reply, _ = answer(*request_for(image, pixels=pixels), SPEC, LIMITS)
        assert "truncated" in reply["error"]
    path.unlink()
    assert "no such file" in answer(*request_for(image, pixels=True), SPEC, LIMITS)[0]["error"]
    with pytest.raises(UntrustedInputError, match="no such file"):
        image_digest(image, LIMITS)


def test_a_file_with_another_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(40, 30)))
    image = inspect_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(encoded(picture(41, 30)))
    assert "has changed" in answer(*request_for(image, pixels=True), SPEC, LIMITS)[0]["error"]


def test_whatever_a_decoder_raises_is_answered() -> None:
    reply, _ = answer(*request_for(EncodedImage(None, None, 5, 5), pixels=True), ImageSpec(14, 1540, 2), LIMITS)
    assert "error" in reply


def test_messages_come_back_as_they_went_and_cut_ones_are_the_end() -> None:
    buffer = io.BytesIO()
    write_message(buffer, {"a": 1}, b"xyz")
    write_message(buffer, {"b": None})
    whole = buffer.getvalue()
    stream = io.BytesIO(whole)
    assert read_message(stream) == ({"a": 1, "payload": 3}, bytearray(b"xyz"))
    assert read_message(stream) == ({"b": None, "payload": 0}, bytearray())
    assert read_message(stream) is None
    first = len(whole) - 4 - len(b'{"b": null, "payload": 0}')
    assert all(read_message(io.BytesIO(whole[:cut])) is None for cut in range(first))


def test_the_program_answers_until_its_input_ends(tmp_path: Path) -> None:
    # The current folder of a run may hold anything, files named like modules of ours too.
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    requests, image = io.BytesIO(), inspect_image(encoded(picture(30, 30)))
    for pixels in (False, True):
        write_message(requests, *request_for(image, pixels=pixels))
    done = subprocess.run(
        main_arguments(SPEC, LIMITS), input=requests.getvalue(), capture_output=True, cwd=tmp_path, env=worker_environment(), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    replies = io.BytesIO(done.stdout)
    assert read_message(replies) == ({"ready": True, "payload": 0}, bytearray())
    assert read_message(replies)[0]["size"] == len(image.data or b"")  # type: ignore[index]
    assert read_message(replies)[0]["shape"] == [3, 56, 56]  # type: ignore[index]
    assert read_message(replies) is None


def test_a_worker_is_small_and_never_takes_the_gpu() -> None:
    assert worker_environment()["CUDA_VISIBLE_DEVICES"] == ""
    code = "import sys; import ms4_train.data.image_worker; sys.exit(bool({'torch', 'mistral_common'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=worker_environment(), timeout=60).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no process its size")
def test_memory_has_a_ceiling_above_what_the_limits_need() -> None:
    # The limits allow 128 MB and 32 bytes per pixel: an image of a thousand pixels fits, what a gone-wild decoder would take does not.
    code = (
        "from ms4_train.data.image_worker import limit_memory; from ms4_train.chat.images import ImageSpec\n"
        "from ms4_train.untrusted import ImageLimits\n"
        "{}limit_memory(ImageSpec(14, 28, 2), ImageLimits(max_bytes=1000, max_pixels=1000))\n"
        "bytearray(50 << 20)\n"
        "try: bytearray(400 << 20)\n"
        "except MemoryError: print('bounded')"
    )
    for prefix, expected in (("", b"bounded\n"), ("# ", b"")):
        done = subprocess.run([sys.executable, "-c", code.format(prefix)], env=worker_environment(), capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
