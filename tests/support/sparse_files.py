"""Checkpoints of the real model's size that take hardly any disk: whole headers, holes for the weights, ones for the scale scalars.

Written as the safetensors format describes itself, without the writers under test.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
_ONES = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f"}

Specs = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored name -> (type, shape)."""


def write_sparse(file: Path, specs: Specs, ones: frozenset[str] = frozenset()) -> dict[str, int]:
    """Write one safetensors file of zeros that occupies only its header, and ones for the tensors in ``ones``.

    Returns:
        Stored name -> offset of its values in the file.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in specs.items():
        size = math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    start = 8 + len(text)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(start + offset)
        for name in ones:
            dtype, shape = specs[name]
            os.pwrite(handle.fileno(), _ONES[dtype] * math.prod(shape), start + header[name]["data_offsets"][0])
    return {name: start + entry["data_offsets"][0] for name, entry in header.items()}


def write_sparse_shards(folder: Path, stem: str, specs: Specs, shards: int, ones: frozenset[str]) -> None:
    """Write ``STEM-0000i-of-0000n.safetensors`` and their index, tensors dealt out in order."""
    names = list(specs)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        mine = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_sparse(folder / file, {name: specs[name] for name in mine}, ones & set(mine))
        weight_map |= dict.fromkeys(mine, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
