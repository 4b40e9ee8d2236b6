"""Worker processes that decode and preprocess images while the model computes.

Why processes and not threads: a header bounds an image's pixels and bytes, but only a process can be ended when its time is over, when a
decoder hangs, or when it crashes; a thread cannot, and a crash in it takes the run along. The cost is the start of a worker (about a
second, once) and a copy of the pixels through a pipe (some 20 ms for the largest image). The processes are plain programs on pipes
(``ms4_train.data.image_worker``), not ``multiprocessing``: nothing is pickled, the caller's main module is not imported again, nothing is
forked from a process with threads or a GPU context, and a worker ends with its pipe, even after SIGKILL of the run.

A worker starts when an image first needs it, and starts again behind one that was ended.
Exercise it: ``pytest tests/ms4_train/data/test_image_workers.py``.

Legend of shape suffixes: c = channels, h and w = height and width in pixels.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ms4_train.chat import ChatTokenizer
from ms4_train.chat.images import ImageSpec
from ms4_train.config.schema import ImagesSection
from ms4_train.data.image_worker import main_arguments, read_message, request_for, worker_environment, write_message
from ms4_train.errors import MissingDependencyError, RowError
from ms4_train.model.images import ImageBatch
from ms4_train.untrusted import EncodedImage, ImageLimits

BAD_IMAGE = "bad-image"
SLOW_IMAGE = "slow-image"
"""Fault codes of an image that cannot be decoded, and of one that takes too long."""

START_SECONDS = 120.0
"""For a worker to import what it needs, on a slow disk."""

END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What a worker found."""

    digest: str
    """Identity of the encoded bytes."""
    size: int
    """Encoded bytes."""
    pixels: ImageBatch | None
    """The one preprocessed image; None where it was only checked."""


class ImageWorkers:
    """At most ``count`` workers. Every method may be called from any thread.

    Args:
        spec: how images are cut; None where the tokenizer knows no images, so that none can come.
        limits: bounds on bytes, pixels and sides.
        count: worker processes.
        seconds: time for one image, from its sending to the answer; a worker that needs more is killed.
    """

    def __init__(self, spec: ImageSpec | None, limits: ImageLimits, *, count: int, seconds: float) -> None:
        self._spec = spec
        self.limits = limits
        self.seconds = seconds
        self._count = count
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._idle: list[_Worker] = []
        # Holds every living worker, so that none outlives this object where nobody calls ``close``.
        self._living: set[_Worker] = set()
        weakref.finalize(self, _end_all, self._living)

    def check(self, image: EncodedImage) -> Future[DecodedImage]:
        """Decode an image to know that it can be.

        Returns:
            A future; its exception is a ``RowError`` with the code ``bad-image`` or ``slow-image``, without a place.
        """
        return self._submit(image, pixels=False, attempts=1)

    def load(self, image: EncodedImage) -> Future[DecodedImage]:
        """Decode and preprocess an image; one that was checked gets a second chance where the machine was slow.

        Returns:
            A future, as ``check``.
        """
        return self._submit(image, pixels=True, attempts=2)

    def process_ids(self) -> list[int]:
        """Of the living workers."""
        with self._lock:
            return sorted(worker.process_id for worker in self._living)

    def close(self) -> None:
        """End all workers, also those at work. A later image starts new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
            self._idle.clear()
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
        _end_all(self._living)
        if executor is not None:
            executor.shutdown(wait=True)

    def _submit(self, image: EncodedImage, *, pixels: bool, attempts: int) -> Future[DecodedImage]:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._count, thread_name_prefix="images")
            return self._executor.submit(self._decode, self._executor, image, pixels, attempts)

    def _decode(self, mine: ThreadPoolExecutor, image: EncodedImage, pixels: bool, attempts: int) -> DecodedImage:
        assert self._spec is not None
        request = request_for(image, pixels=pixels)
        for attempt in range(attempts):
            worker = self._take(self._spec, mine)
            reply = worker.ask(*request, self.seconds)
            if reply is not None:
                self._put(worker, mine)
                return _decoded(*reply, spec=self._spec, pixels=pixels)
            with self._lock:
                self._living.discard(worker)
                is_last = attempt == attempts - 1 or self._executor is not mine
            worker.end()
            if is_last:
                raise _lost(worker, self.seconds)
        raise AssertionError("unreachable")

    def _take(self, spec: ImageSpec, mine: ThreadPoolExecutor) -> _Worker:
        with self._lock:
            if self._executor is not mine:
                raise CancelledError  # closed meanwhile: nobody reads the answer
            if self._idle:
                return self._idle.pop()
            worker = _Worker(spec, self.limits)
            self._living.add(worker)
        try:
            worker.wait_until_ready()
        except MissingDependencyError:
            self._living.discard(worker)
            raise
        return worker

    def _put(self, worker: _Worker, mine: ThreadPoolExecutor) -> None:
        with self._lock:
            if self._executor is mine and worker.is_usable:
                self._idle.append(worker)
                return
            self._living.discard(worker)
        worker.end()


def make_workers(section: ImagesSection, tokenizer: ChatTokenizer) -> ImageWorkers:
    """The workers of a run, none of them started."""
    limits = ImageLimits(section.max_bytes, section.max_pixels, section.max_side)
    return ImageWorkers(tokenizer.image_spec, limits, count=section.workers, seconds=section.decode_seconds)


class _Worker:
    """One process and the conversation with it, led by one thread at a time."""

    def __init__(self, spec: ImageSpec, limits: ImageLimits) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # as long as the process
        # A session of its own: Ctrl-C is for the run, which ends its workers itself.
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            main_arguments(spec, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=worker_environment(),
            start_new_session=True,
        )
        self._is_expired = False
        self.process_id = self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it can be sent another image."""
        return not self._is_expired and self._process.poll() is None

    @property
    def is_expired(self) -> bool:
        """Whether its time was over."""
        return self._is_expired

    def wait_until_ready(self) -> None:
        """Raises ``MissingDependencyError`` where the process cannot start."""
        if self._timed(lambda: read_message(self._replies), START_SECONDS) is None:
            self.end()
            raise MissingDependencyError(
                f"a worker for images does not start{self._last_words()}.",
                fix="install the packages of pyproject.toml; images need pillow, opencv-python-headless and mistral-common.",
            )

    def ask(self, request: dict[str, Any], payload: bytes, seconds: float) -> tuple[dict[str, Any], bytearray] | None:
        """The answer; None where the process ended before it, or was ended for its time."""

        def exchange() -> tuple[dict[str, Any], bytearray] | None:
            write_message(self._requests, request, payload)
            return read_message(self._replies)

        return self._timed(exchange, seconds)

    def end(self) -> None:
        """Kill and reap the process."""
        self._process.kill()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return  # stuck in the kernel, on a dead network disk for instance; it ends when that lets it go
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                _close(stream)

    def _timed(self, exchange: Any, seconds: float) -> tuple[dict[str, Any], bytearray] | None:
        """Run ``exchange`` and kill the process when the time is over, which ends the exchange wherever it stands."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            return exchange()
        except (OSError, ValueError):  # a broken pipe, or one that ``end`` closed
            return None
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._is_expired = True
        self._process.kill()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
        return f" ({lines[-1][:300]})" if lines else ""

    @property
    def _requests(self) -> BinaryIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value] # a buffered binary stream

    @property
    def _replies(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value] # a buffered binary stream


def _decoded(header: dict[str, Any], payload: bytearray, *, spec: ImageSpec, pixels: bool) -> DecodedImage:
    if "error" in header:
        raise RowError(header["error"], row_code=BAD_IMAGE, fix=header["fix"] or "replace the image.")
    if not pixels:
        return DecodedImage(header["digest"], header["size"], None)
    pixels_chw = torch.frombuffer(payload, dtype=torch.float32).view(header["shape"])
    return DecodedImage(header["digest"], header["size"], ImageBatch.from_pixels([pixels_chw], spec.patch_size))


def _lost(worker: _Worker, seconds: float) -> RowError:
    if worker.is_expired:
        return RowError(
            f"takes more than {seconds:g} seconds to decode.",
            row_code=SLOW_IMAGE,
            fix="replace the image, or raise data.images.decode_seconds.",
        )
    return RowError("ended the process that decoded it (out of memory, or a crash).", row_code=BAD_IMAGE, fix="replace the image.")


def _end_all(workers: set[_Worker]) -> None:
    while workers:
        try:
            worker = workers.pop()
        except KeyError:  # another thread was faster
            return
        worker.end()


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # bytes that the dead process will not read
        stream.close()
