"""What tests of conversions share: reading a folder's tensors with safetensors itself, and comparing them to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files; none comes twice."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def different(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, unexpected, or differ in type, shape or a bit."""
    names = sorted(found.keys() ^ wanted.keys())
    for name in found.keys() & wanted.keys():
        one, other = found[name], wanted[name]
        if one.dtype != other.dtype or one.shape != other.shape or bits(one) != bits(other):
            names.append(name)
    return names


def file_sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
