"""Every hostile image of the gallery ends in a typed error or comes to nothing, within a second and 300 MB, in a process of its own.

The measuring process imports nothing but the door for images, so that its memory is the images' own. Each file is handled in a fork of it.
Seconds are the processor's, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.images import HARMLESS, HOSTILE, blank_png, encoded, exif, hostile_bytes, progressive_scans

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 1.0
MAX_MEGABYTES = 300
MAX_MEGABYTES_OF_THE_LARGEST = 450

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


@pytest.mark.slow
def test_the_largest_images_that_are_read_stay_within_what_the_door_promises(tmp_path: Path) -> None:
    plain = Image.new("RGB", (8000, 5000), (40, 90, 200))
    largest = {
        "transparent png": blank_png(8000, 5000, bits=8, colour=6),
        "turned jpeg": encoded(plain, "JPEG", exif=exif(6)),
        "progressive jpeg": encoded(plain, "JPEG", progressive=True, subsampling=0),
        "webp": encoded(plain.crop((0, 0, 5000, 4000)), "WEBP", method=0),
    }
    files = [tmp_path / name for name in largest]
    for file, data in zip(files, largest.values(), strict=True):
        file.write_bytes(data)
    for outcome in measure("door", files):
        # Forty million pixels are honest work, so there is no bound on seconds here.
        assert "read" in outcome, outcome
        assert outcome["megabytes"] < MAX_MEGABYTES_OF_THE_LARGEST, outcome


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
