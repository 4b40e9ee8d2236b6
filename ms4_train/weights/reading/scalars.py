"""The scale scalars of a quantised checkpoint (up to 28,224 of them), read at once and checked.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_scalars.py``.

Not covered: block scales, which are read with their matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.weights.layouts.names import and_more
from ms4_train.weights.reading.stored_files import OpenFiles, Report, StoredTensor, coalesced, refuse

_THREADS = 8  # reads of a few bytes wait for the disk, not for the processor
_BATCH = 64
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Group = tuple[Path, int, int, list[StoredTensor]]


def read_scalars(files: OpenFiles, stored: Iterable[StoredTensor], report: Report = refuse) -> dict[str, Tensor]:
    """Stored name -> values, in the stored type and shape.

    Args:
        files: what reads them.
        stored: tensors of type BF16, F16 or F32.
        report: takes the errors.

    Raises:
        WeightsError: a scale is NaN, infinite, zero or negative (names file and tensor), or cannot be read.
    """
    groups = list(coalesced(stored))

    def read(batch: list[Group]) -> list[bytes | MS4Error]:
        return [_read_group(files, group) for group in batch]

    batches = [groups[start : start + _BATCH] for start in range(0, len(groups), _BATCH)]
    parts: dict[str, tuple[list[StoredTensor], list[bytes]]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        read_in_order = itertools.chain.from_iterable(pool.map(read, batches))
        for (_, start, _, members), data in zip(groups, read_in_order, strict=True):
            if isinstance(data, MS4Error):
                report(data)
                continue
            for member in members:
                owners, pieces = parts.setdefault(member.info.dtype, ([], []))
                owners.append(member)
                pieces.append(data[member.info.start - start : member.info.stop - start])
    found: dict[str, Tensor] = {}
    bad: list[tuple[StoredTensor, float]] = []
    for dtype, (owners, pieces) in parts.items():
        values = torch.frombuffer(bytearray(b"".join(pieces)), dtype=_DTYPES[dtype])
        sizes = [math.prod(owner.info.shape) for owner in owners]
        for owner, part in zip(owners, values.split(sizes), strict=True):
            found[owner.stored_name] = part.view(owner.info.shape)
        wide = values.float()
        wrong = torch.nonzero(~((wide > 0) & (wide < math.inf))).flatten().tolist()
        if wrong:
            owner_of = [index for index, size in enumerate(sizes) for _ in range(size)]
            bad += [(owners[owner_of[place]], float(wide[place])) for place in wrong]
    for index, (owner, value) in enumerate(bad):
        what = f"the scale is {value}{and_more(bad) if index == 0 else ''}; a scale is finite and above 0."
        report(WeightsError(what, file=owner.file, key=owner.stored_name, fix="get the file again from its source."))
    return found


def _read_group(files: OpenFiles, group: Group) -> bytes | MS4Error:
    file, start, stop, members = group
    try:
        return files.read_bytes(file, start, stop - start, key=members[0].stored_name)
    except MS4Error as error:
        return error
