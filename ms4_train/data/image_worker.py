"""The program of one worker process: decodes and preprocesses images that it is sent, one after the other, until its input ends.

``ms4_train.data.image_workers`` starts it and speaks with it over two pipes. A message is the length of its header (4 bytes), the
header (JSON), and as many payload bytes as the header says. Because the input ends with the process that holds its other side, no
worker outlives a run, however that ended.

At the default limits the worst images measured cost less than one processor second and 300 MB, the start of the process included
(``tests/security/test_hostile_images.py``). So this imports neither torch nor mistral-common, and keeps one copy of what it was sent.

Exercise it: ``pytest tests/ms4_train/data/test_image_worker.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ms4_train.chat.images import ImageSpec, preprocess
from ms4_train.errors import MS4Error
from ms4_train.untrusted import EncodedImage, ImageLimits, decode_image, read_bytes

_LENGTH = struct.Struct(">I")
_SPARE_BYTES = 128 << 20


def write_message(stream: BinaryIO, header: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Send one message."""
    text = json.dumps({**header, "payload": len(payload)}).encode()
    stream.write(_LENGTH.pack(len(text)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytearray] | None:
    """The next message; None where the other side has ended, in the middle of a message too."""
    size = _read_exactly(stream, _LENGTH.size)
    text = None if size is None else _read_exactly(stream, _LENGTH.unpack(size)[0])
    if text is None:
        return None
    header = json.loads(text)
    payload = _read_exactly(stream, header["payload"])
    return None if payload is None else (header, payload)


def _read_exactly(stream: BinaryIO, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined] # every raw and buffered binary stream has it
        if not count:
            return None
        done += count
    return data


def settings_text(spec: ImageSpec, limits: ImageLimits) -> str:
    """What a worker is started with."""
    return json.dumps({"spec": spec._asdict(), "limits": asdict(limits)})


def request_for(image: EncodedImage, *, pixels: bool) -> tuple[dict[str, Any], bytes]:
    """The message that asks for an image; with ``pixels`` for its pixels, otherwise only whether they can be had."""
    path = None if image.path is None else str(image.path)
    return {"path": path, "width": image.width, "height": image.height, "pixels": pixels}, image.data or b""


def image_digest(image: EncodedImage, limits: ImageLimits) -> tuple[str, int]:
    """Identity and size of an image's encoded bytes, in memory or in its file.

    Raises:
        UntrustedInputError: the file is gone, or too large.
    """
    data = image.data
    if data is None:
        assert image.path is not None
        data = read_bytes(image.path, max_bytes=limits.max_bytes)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), len(data)


def answer(request: dict[str, Any], payload: bytes, spec: ImageSpec, limits: ImageLimits) -> tuple[dict[str, Any], bytes | memoryview]:
    """Decode one image.

    Args:
        request: as ``request_for`` makes it.
        payload: the encoded image, or nothing.
        spec: how images are cut.
        limits: bounds.

    Returns:
        ``digest`` and ``size`` of the encoded image, with the preprocessed pixels (float32, of ``shape`` [C, H, W]) where they are wanted;
        or ``error`` with its ``fix``.
    """
    try:
        path = request["path"]
        data, path = (payload, None) if path is None else (None, Path(path))
        image = EncodedImage(data, path, request["width"], request["height"])
        digest, size = image_digest(image, limits)
        found: dict[str, Any] = {"digest": digest, "size": size}
        if not request["pixels"]:
            decode_image(image, limits).close()
            return found, b""
        pixels = np.ascontiguousarray(preprocess(image, spec, limits), dtype=np.float32)
        return {**found, "shape": pixels.shape}, pixels.data.cast("B")
    except MS4Error as error:
        return {"error": error.message, "fix": error.fix}, b""
    # Whatever a decoder raises over damaged bytes: the row is at fault, and the next image is waiting.
    except Exception as error:
        return {"error": f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())[:200]}).", "fix": None}, b""


def main() -> None:
    """Serve requests on standard input until it ends."""
    settings = json.loads(sys.argv[1])
    spec, limits = ImageSpec(**settings["spec"]), ImageLimits(**settings["limits"])
    # The pipe is kept for messages: what a library prints must not stand between them.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    limit_memory(spec, limits)
    write_message(replies, {"ready": True})
    while (message := read_message(requests)) is not None:
        header, received = message
        payload = bytes(received)
        del message, received
        write_message(replies, *answer(header, payload, spec, limits))
        del payload


def limit_memory(spec: ImageSpec, limits: ImageLimits) -> None:
    """Bound this process to what it has and twice what an image within ``limits`` needs; past it an image is an error.

    Only a second barrier: what a decoder really takes is bounded by the header's size. Without effect where the system has no /proc.
    """
    import cv2  # noqa: F401 # counts as what the process has

    try:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    allowance = 32 * limits.max_pixels + 4 * limits.max_bytes + 72 * (spec.max_size + spec.cell) ** 2 + _SPARE_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = held + allowance if hard == resource.RLIM_INFINITY else min(held + allowance, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main_arguments(spec: ImageSpec, limits: ImageLimits) -> list[str]:
    """The command that starts a worker."""
    # -P: the current folder may hold anything, json.py for instance.
    return [sys.executable, "-P", "-c", "from ms4_train.data.image_worker import main; main()", settings_text(spec, limits)]


def worker_environment() -> dict[str, str]:
    """The environment of a worker: our import path, one thread each, no GPU, and memory that goes back to the system at once.

    By itself glibc keeps freed blocks of up to 32 MB, which adds 60 MB to the largest images. Huge pages halve the time that the system
    takes to hand the memory out. Other C libraries ignore both settings.
    """
    package = Path(__file__).absolute().parents[2]
    path = os.pathsep.join([str(package), *(str(Path(entry).absolute()) for entry in sys.path if entry)])
    tunables = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1"]))
    one_thread = {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "GLIBC_TUNABLES": tunables}
    return {**os.environ, **one_thread, **memory, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
