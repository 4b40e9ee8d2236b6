"""A cheap identity of a checkpoint: the same for the same values in the same types, whatever the files and prefixes they are stored in.

SHA-256 over what config.json says of the computation, every text tensor's name, type and shape, and bytes sampled evenly from each one
(all bytes of small ones). Adapters and run state record it, and are refused on another base.
Exercise it: ``pytest tests/ms4_train/weights/test_fingerprint.py``.

Not covered: a change that touches no sampled byte; this is an identity, not a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ms4_train.errors import WeightsError
from ms4_train.weights.hf_config import to_hf_config
from ms4_train.weights.model_config import read_config
from ms4_train.weights.reader import StoredTensor, scan_checkpoint

WHOLE_BYTES = 1 << 16
"""Tensors up to this size are hashed whole."""
SAMPLES = 128
SAMPLE_BYTES = 512
_VERSION = b"ms4 fingerprint 1"


def base_fingerprint(folder: str | Path) -> str:
    """The identity of a checkpoint, as ``sha256:`` and 64 hexadecimal digits.

    Reads at most 64 KiB of each tensor. ``config.json`` enters as the text configuration it gives, so re-saving it changes nothing.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    checkpoint = scan_checkpoint(folder)
    digest = hashlib.sha256(_VERSION)
    digest.update(json.dumps(to_hf_config(read_config(folder), dtype=checkpoint.dtype), sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        stored = checkpoint.tensors[name]
        digest.update(f"\n{name} {stored.info.dtype} {list(stored.info.shape)}\n".encode())
        _add_samples(digest, stored)
    return f"sha256:{digest.hexdigest()}"


def _add_samples(digest: hashlib._Hash, stored: StoredTensor) -> None:
    start, size = stored.info.start, stored.info.stop - stored.info.start
    if size <= WHOLE_BYTES:
        places = [(start, size)]
    else:
        stride = (size - SAMPLE_BYTES) / (SAMPLES - 1)
        places = [(start + round(index * stride), SAMPLE_BYTES) for index in range(SAMPLES)]
    try:
        descriptor = os.open(stored.file, os.O_RDONLY)
        try:
            for offset, count in places:
                digest.update(os.pread(descriptor, count, offset))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror}).", file=stored.file, fix="check the disk.") from error
