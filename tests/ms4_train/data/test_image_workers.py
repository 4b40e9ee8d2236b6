"""Workers: the same pixels as without them, bounds that hold, and no process that stays."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.image_rows import broken_png, png

from ms4_train.chat.images import ImageSpec, to_image_batch
from ms4_train.config.schema import ImagesSection
from ms4_train.data.image_worker import worker_environment
from ms4_train.data.image_workers import ImageWorkers
from ms4_train.errors import MissingDependencyError, RowError
from ms4_train.untrusted import ImageLimits, inspect_image

SPEC = ImageSpec(14, 1540, 2)


def make(*, count: int = 1, seconds: float = 30.0) -> ImageWorkers:
    return ImageWorkers(SPEC, ImageLimits(), count=count, seconds=seconds)


@pytest.fixture(scope="module")
def workers() -> Iterator[ImageWorkers]:
    shared = make()
    yield shared
    shared.close()


def is_gone(process_id: int, seconds: float = 30.0) -> bool:
    """Whether the process ends: neither alive nor a zombie."""
    end = time.monotonic() + seconds
    while Path(f"/proc/{process_id}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_pixels_equal_those_without_workers_in_order(workers: ImageWorkers) -> None:
    images = [inspect_image(png(seed)) for seed in range(8)]
    futures = [workers.load(image) for image in images]
    for image, future in zip(images, futures, strict=True):
        pixels, here = future.result().pixels, to_image_batch([image], SPEC)
        assert pixels is not None
        assert torch.equal(pixels.patches_pi, here.patches_pi)
        assert pixels.grids == here.grids
    assert len(workers.process_ids()) == 1


def test_a_check_finds_broken_pixels_and_the_worker_goes_on(workers: ImageWorkers) -> None:
    workers.check(inspect_image(png(0))).result()
    before = workers.process_ids()
    broken = inspect_image(broken_png())
    for ask in (workers.check, workers.load):
        with pytest.raises(RowError, match="cannot be decoded") as info:
            ask(broken).result()
        assert info.value.row_code == "bad-image"
    good = workers.check(inspect_image(png(0))).result()
    assert (good.pixels, good.size) == (None, len(png(0)))
    assert workers.process_ids() == before


def test_an_image_beyond_its_time_is_a_fault_and_its_worker_is_killed() -> None:
    workers = make(seconds=1.0)
    image = inspect_image(png(3))
    workers.check(image).result()
    (first,) = workers.process_ids()
    os.kill(first, signal.SIGSTOP)  # as a decoder that hangs
    start = time.monotonic()
    with pytest.raises(RowError, match="more than 1 seconds") as info:
        workers.check(image).result()
    assert info.value.row_code == "slow-image"
    assert 0.9 < time.monotonic() - start < 5
    assert is_gone(first)
    # One that was checked before the run gets a second worker: a machine may be slow once.
    workers.load(image).result()
    (second,) = workers.process_ids()
    os.kill(second, signal.SIGSTOP)
    assert workers.load(image).result().pixels is not None
    assert is_gone(second)
    workers.close()


def test_a_decoder_that_crashes_is_a_fault_of_its_image() -> None:
    workers = make()
    image = inspect_image(png(3))
    workers.check(image).result()
    (first,) = workers.process_ids()
    os.kill(first, signal.SIGSTOP)
    future = workers.check(image)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(RowError, match="ended the process") as info:
        future.result()
    assert info.value.row_code == "bad-image"
    assert is_gone(first)
    workers.close()


def test_close_ends_idle_and_busy_workers_and_later_images_start_new_ones() -> None:
    workers = make(count=2)
    images = [inspect_image(png(seed)) for seed in range(4)]
    for future in [workers.check(image) for image in images]:
        future.result()
    process_ids = workers.process_ids()
    assert len(process_ids) == 2
    os.kill(process_ids[0], signal.SIGSTOP)
    os.kill(process_ids[1], signal.SIGSTOP)
    pending = [workers.check(image) for image in images]
    start = time.monotonic()
    workers.close()
    assert time.monotonic() - start < 5
    assert workers.process_ids() == []
    assert all(is_gone(process_id) for process_id in process_ids)
    assert all(future.cancelled() or future.exception() is not None for future in pending)
    assert workers.check(images[0]).result().size
    (last,) = workers.process_ids()
    # Nobody closes them: they end with the object. What failed above holds it too, through the frames of its traceback.
    del workers, pending, future
    gc.collect()
    assert is_gone(last)


def test_workers_end_with_a_run_that_is_killed() -> None:
    code = (
        "import time; from ms4_train.data.image_workers import ImageWorkers; from ms4_train.chat.images import ImageSpec\n"
        "from ms4_train.untrusted import ImageLimits, inspect_image; from support.image_rows import png\n"
        "workers = ImageWorkers(ImageSpec(14, 1540, 2), ImageLimits(), count=1, seconds=60)\n"
        "workers.check(inspect_image(png(0))).result(); print(workers.process_ids()[0], flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=worker_environment())
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    run.kill()
    run.wait()
    run.stdout.close()
    assert is_gone(worker)


def test_a_worker_that_cannot_start_is_said_and_not_an_image_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MissingDependencyError, match="does not start"):
        make().check(inspect_image(png(0))).result()


def test_bounds_come_from_the_configuration() -> None:
    from support.tokenizers import tiny_tokenizer

    from ms4_train.data.image_workers import make_workers

    workers = make_workers(ImagesSection(max_bytes=5, max_pixels=6, max_side=7, decode_seconds=8), tiny_tokenizer())
    assert workers.limits == ImageLimits(5, 6, 7)
    assert workers.seconds == 8
    assert workers.process_ids() == []
