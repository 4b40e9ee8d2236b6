"""The header of a safetensors file, checked before any tensor is touched.

Layout (safetensors format description): 8 bytes little-endian header length N, N bytes of JSON, then the data. Offsets in the JSON
count from the start of the data. Exercise it: ``pytest tests/ms4_train/untrusted/test_safetensors_header.py``.

Not covered: the values. A flipped bit in the data passes; checksums find it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted.files import open_regular
from ms4_train.untrusted.json_text import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
MAX_NAME_CHARACTERS = 512
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip

# torch.save's archive, and bare pickles; as a header's length any of them is beyond the bound.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


class TensorInfo(NamedTuple):
    """Where one tensor lies: its bytes are ``file[start:stop]``, counted from the start of the FILE."""

    dtype: str
    """Name in the format's spelling: ``F32``, ``BF16``, ``F8_E4M3`` ..."""
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file.

    The header is at most 100 MB, sizes match types and shapes, tensors lie one behind the other without gap or overlap and fill the
    file to its end, and names are printable and no path tricks.

    Returns:
        Name -> ``TensorInfo``, in the order of the data.

    Raises:
        UntrustedInputError: any of this does not hold, or the file cannot be read.
    """
    header, data_start, file_size = _load(path)
    tensors = {name: _tensor(name, entry, data_start, path) for name, entry in header.items() if name != "__metadata__"}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    expected = data_start
    for name, info in ordered.items():
        if info.start != expected:
            word = "overlaps the tensor before it" if info.start < expected else "leaves a gap before it"
            raise _refuse(f"its data {word}.", path, name)
        expected = info.stop
    if expected != file_size:
        raise _refuse(f"the tensors end at byte {expected:,}, but the file has {file_size:,} bytes; it is cut off or damaged.", path)
    return ordered


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return the free-form ``__metadata__`` strings of a safetensors file (empty where there are none).

    Raises:
        UntrustedInputError: the header cannot be read, or the metadata is not a map from text to text.
    """
    header, _, _ = _load(path)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse("must map text to text.", path, "__metadata__")
    return metadata


def _refuse(message: str, path: str | Path, key: str | None = None) -> UntrustedInputError:
    shown = None if key is None else ascii(key[:100])[1:-1]
    return UntrustedInputError(message, file=path, key=shown, fix="get the file again from its source.")


def _load(path: str | Path) -> tuple[dict[str, Any], int, int]:
    """Returns the header's JSON object, the offset of the data, and the file's size."""
    with open_regular(path) as handle:
        try:
            file_size = os.fstat(handle.fileno()).st_size
            prefix = handle.read(8)
            if len(prefix) < 8:
                raise _refuse(f"is not a safetensors file: {file_size} bytes are too few.", path)
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES and prefix.startswith(_PICKLES):
                raise _refuse("is a pickle under the name of a safetensors file, and is never read.", path)
            if length > MAX_HEADER_BYTES:
                raise _refuse(f"is not a safetensors file: a header of {length:,} bytes (at most {MAX_HEADER_BYTES:,}).", path)
            if length < 2 or length > file_size - 8:
                raise _refuse(f"a header of {length:,} bytes in a file of {file_size:,}; it is cut off or damaged.", path)
            raw = handle.read(length)
        except OSError as error:
            raise UntrustedInputError(f"cannot be read ({error.strerror}).", file=path, fix="check the disk.") from None
    try:
        header = parse_json(raw, file=path, max_depth=4)
    except UntrustedInputError as error:
        raise _refuse(f"its header is {error.message}", path) from None
    if not isinstance(header, dict):
        raise _refuse("its header is not a JSON object.", path)
    return header, 8 + length, file_size


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(name: str, entry: Any, data_start: int, path: str | Path) -> TensorInfo:
    _check_name(name, path)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refuse("must have exactly dtype, shape and data_offsets.", path, name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _refuse(f"an unknown type {ascii(dtype)[:40]}.", path, name)
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(size) for size in shape):
        raise _refuse("its shape is not a short list of sizes.", path, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _refuse("its data_offsets are not two positions.", path, name)
    start, stop = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise _refuse(f"{dtype} of shape {shape} does not take the {stop - start:,} bytes its offsets span.", path, name)
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + stop)


def _check_name(name: str, path: str | Path) -> None:
    parts = name.split("/")
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise _refuse("a tensor name that is empty, too long, unprintable, or a path trick.", path, name)
