"""A safetensors file that is made at its full size, header first, and filled by any number of threads at their own byte ranges.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_tensor_file.py``.

Not covered: when its bytes are on the disk (``journal``), and what they mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, uint8

from ms4_train.errors import WeightsError
from ms4_train.weights.convert.plan import FilePlan

COPY_BYTES = 8 << 20
"""Bytes copied at a time: what a hashing thread then finds in the processor's or the page cache, and how soon a stop is noticed."""
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}

Wrote = Callable[[int, int], None]
"""Told each range [start, stop) of the file once its bytes are written."""


def create(path: Path, plan: FilePlan) -> None:
    """Make the file with its header and its final size; the rest is a hole.

    Raises:
        OSError: the file exists or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(descriptor, plan.num_bytes)
        write_at(descriptor, memoryview(plan.header), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_as_planned(path: Path, plan: FilePlan) -> bool:
    """Whether the file has the planned size and header."""
    try:
        with path.open("rb") as handle:
            return os.fstat(handle.fileno()).st_size == plan.num_bytes and handle.read(len(plan.header)) == plan.header
    except OSError:
        return False


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    assert values.is_contiguous()
    return values.detach().reshape(-1).view(uint8).numpy().data


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def copy_range(source: int, start: int, stop: int, target: int, offset: int, *, wrote: Wrote, file: Path) -> None:
    """Copy bytes [start, stop) of one open file to ``offset`` of another, inside the kernel where that is possible.

    Args:
        source: descriptor to read.
        start: first byte.
        stop: end.
        target: descriptor to write.
        offset: where to.
        wrote: told each range of the target after it is written; may raise to stop.
        file: name of the source, for errors.

    Raises:
        WeightsError: the source ends early.
        OSError: reading or writing fails.
    """
    is_in_kernel = True
    while start < stop:
        wanted = min(COPY_BYTES, stop - start)
        if is_in_kernel:
            try:
                count = os.copy_file_range(source, target, wanted, start, offset)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                is_in_kernel = False
                continue
            if not count and start < os.fstat(source).st_size:
                is_in_kernel = False  # some file systems say 0 where they mean that they cannot
                continue
        else:
            data = os.pread(source, wanted, start)
            count = len(data)
            write_at(target, memoryview(data), offset)
        if not count:
            raise WeightsError("cannot be read (it ends early).", file=file, fix="get the file again from its source.")
        wrote(offset, offset + count)
        start, offset = start + count, offset + count
