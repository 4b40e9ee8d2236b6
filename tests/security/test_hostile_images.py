"""Every hostile image of the gallery ends in a typed error or comes to nothing, within a second and 300 MB, in a process of its own.

The gallery is measured at the door: the process imports nothing else, so that its memory is the images' own, and each file is handled in a
fork of it. The largest images that are legal go through a worker as a run starts it, its start included. Seconds are the processor's, so
that other work on the machine does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.images import HARMLESS, HOSTILE, blank_png, encoded, exif, hostile_bytes, progressive_scans

from ms4_train.chat.images import ImageSpec
from ms4_train.data.image_worker import main_arguments, read_message, request_for, worker_environment, write_message
from ms4_train.untrusted import DEFAULT_LIMITS, ImageLimits, inspect_image

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 1.0
MAX_MEGABYTES = 300

MEASURE = """
import json, os, sys, time
from pathlib import Path
from PIL import GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, Image
from ms4_train.errors import MS4Error
from ms4_train.untrusted import decode_image, inspect_image

def door(path):
    image = inspect_image(path)
    return [image.width, image.height, decode_image(image).getpixel((0, 0))]

def pillow(path):
    image = Image.open(path)
    image.getexif()
    image.load()

def handle(way, path):
    started = time.process_time()
    try:
        result = {"read": way(path)}
    except MS4Error as error:
        result = {"error": type(error).__name__, "text": str(error)}
    except BaseException as error:
        result = {"escaped": repr(error)[:300]}
    result["seconds"] = time.process_time() - started
    status = Path("/proc/self/status").read_text()
    result["megabytes"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return result

way = {"door": door, "pillow": pillow}[sys.argv[1]]
Image.MAX_IMAGE_PIXELS = 10**9 if sys.argv[1] == "pillow" else Image.MAX_IMAGE_PIXELS
for name in sys.argv[2:]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, json.dumps(handle(way, Path(name))).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    answer = os.read(read, 1 << 16)
    print(answer.decode() if not status else json.dumps({"escaped": f"died with status {status}"}), flush=True)
    os.close(read)
"""


def measure(way: str, files: list[Path]) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", MEASURE, way, *(str(path) for path in files)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every file of the gallery. All are named .png, whatever they are."""
    folder = tmp_path_factory.mktemp("images")
    names = [*HOSTILE, *HARMLESS]
    files = []
    for index, name in enumerate(names):
        files.append(folder / f"{index}.png")
        files[-1].write_bytes(hostile_bytes(name))
    return dict(zip(names, measure("door", files), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[name]
    assert outcome.get("error") == "ImageError", outcome
    assert "Fix: " in outcome["text"]
    assert outcome["text"].count("\n") == 0


@pytest.mark.parametrize("name", HARMLESS)
def test_tricks_come_to_nothing(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    size = {"gif with a comment in pieces": [8, 8], "exif entries of the same bytes": [8, 8], "rotated jpeg": [30, 40]}.get(name, [40, 30])
    assert outcomes[name].get("read", [])[:2] == size, outcomes[name]


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS])
def test_time_and_memory_are_bounded(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes[name]["seconds"] < MAX_SECONDS, outcomes[name]
    assert outcomes[name]["megabytes"] < MAX_MEGABYTES, outcomes[name]


def ask_worker(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, pixels: bool = True) -> dict[str, Any]:
    """What one image costs a new worker, from its start to its answer."""
    spec = ImageSpec(14, 1540, 2)
    command = main_arguments(spec, limits)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=worker_environment()) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert read_message(worker.stdout) is not None  # type: ignore[arg-type] # a buffered binary stream
        write_message(worker.stdin, *request_for(inspect_image(data, limits), pixels=pixels))  # type: ignore[arg-type] # as above
        reply = read_message(worker.stdout)  # type: ignore[arg-type] # as above
        assert reply is not None
        # Behind the name, which stands in brackets: user and system time are the fields 14 and 15, counted from 1.
        user, system = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        peak = Path(f"/proc/{worker.pid}/status").read_text().split("VmHWM:")[1].split()[0]
        worker.stdin.close()
    return {**reply[0], "seconds": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), "megabytes": int(peak) / 1024}


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


LARGEST = {
    "grey png": lambda: blank_png(3535, 3535),
    "wide transparent png": lambda: blank_png(16_384, 762, bits=8, colour=6),
    "tall transparent png": lambda: blank_png(762, 16_384, bits=8, colour=6),
    "png of 31 MiB": lambda: encoded(noise(3260, 3260), compress_level=1),
    "turned jpeg of noise": lambda: encoded(noise(3535, 3535), "JPEG", quality=75, exif=exif(6)),
    "cmyk jpeg of noise": lambda: encoded(noise(3535, 3535).convert("CMYK"), "JPEG", quality=75),
    "progressive jpeg of ten scans": lambda: encoded(noise(3535, 3535), "JPEG", progressive=True, subsampling=0, quality=50),
    "webp": lambda: encoded(noise(2500, 2500), "WEBP", method=0),
}
"""Of each kind the largest that the default limits let through, with the contents that cost most."""


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_images_stay_within_the_bounds_in_a_worker(name: str) -> None:
    data = LARGEST[name]()
    for pixels in (False, True):
        # The least of two: a processor that is shared counts what its caches lost to others.
        costs = [ask_worker(data, pixels=pixels) for _ in range(2)]
        assert "error" not in costs[0], costs
        assert min(cost["seconds"] for cost in costs) < MAX_SECONDS, costs
        assert max(cost["megabytes"] for cost in costs) < MAX_MEGABYTES, costs


def test_control_larger_limits_break_the_bounds() -> None:
    # Otherwise the default limits would not be what holds the bounds.
    cost = ask_worker(blank_png(6320, 6320), ImageLimits(max_pixels=40_000_000))
    assert "error" not in cost
    assert cost["megabytes"] > MAX_MEGABYTES


def test_control_pillow_alone_breaks_the_bounds(tmp_path: Path) -> None:
    # Otherwise the bounds above would say nothing: the same files, opened as most programs do.
    files = [tmp_path / name for name in ("large", "text", "scans")]
    files[0].write_bytes(blank_png(20_000, 20_000))
    files[1].write_bytes(hostile_bytes("zip bomb in zTXt"))
    files[2].write_bytes(progressive_scans(5000, 5000, 100))
    large, text, scans = measure("pillow", files)
    assert large["megabytes"] > MAX_MEGABYTES
    assert "MAX_TEXT_CHUNK" in text["escaped"]
    assert scans["seconds"] > MAX_SECONDS
