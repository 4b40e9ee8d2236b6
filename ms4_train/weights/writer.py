"""Writing a checkpoint folder that transformers loads and that is whole or absent.

Tensors arrive one by one (they may be gathered from other processes as they are asked for) and are written in shards, so that the peak
is one shard. Exercise it: ``pytest tests/ms4_train/weights/test_writer.py``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig
from ms4_train.untrusted import read_bytes
from ms4_train.weights.folder import whole_folder
from ms4_train.weights.hf_config import CONFIG_FILE, to_generation_config, to_hf_config
from ms4_train.weights.loading import expected_shapes
from ms4_train.weights.names import and_more, nearest
from ms4_train.weights.reader import INDEX_FILE, SINGLE_FILE

TOKENIZER_FILE = "tekken.json"
MAX_TOKENIZER_BYTES = 64 << 20
OWN_FILES = (SINGLE_FILE, "model-*.safetensors", INDEX_FILE, CONFIG_FILE, "generation_config.json", TOKENIZER_FILE)
"""What a written folder consists of; a folder of nothing else may be replaced."""


def save_model(
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    folder: str | Path,
    *,
    config: TextConfig,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    max_shard_bytes: int = 5 << 30,
    replace: bool = True,
) -> None:
    """Write a text model in transformers' layout: safetensors, ``config.json``, ``generation_config.json`` and the tokenizer.

    Everything is written beside ``folder``, flushed, and renamed when whole; the free space is checked first.

    Args:
        state: full tensors under our names, as a mapping or as pairs that may be made one at a time.
        folder: where to; made, with its parents.
        config: of the model; its softmax scale is written so that transformers computes it.
        dtype: type of the stored tensors; None keeps that of the first tensor.
        tokenizer_file: copied as ``tekken.json``.
        max_shard_bytes: a file holds at most this much, or one tensor.
        replace: whether an earlier checkpoint written here may be replaced; other content never is.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen.
        StorageError: the disk is full, or ``folder`` holds other files.
        UntrustedInputError: ``tokenizer_file`` cannot be read.
    """
    pairs = cast(Iterator[tuple[str, Tensor]], iter(state.items() if isinstance(state, Mapping) else state))
    if dtype is None:
        first = next(pairs, None)
        if first is None:
            raise WeightsError("there are no tensors to write.", file=folder)
        dtype = first[1].dtype
        pairs = itertools.chain([first], pairs)
    tokenizer = None if tokenizer_file is None else read_bytes(tokenizer_file, max_bytes=MAX_TOKENIZER_BYTES)
    shapes = expected_shapes(config)
    needed = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize + len(tokenizer or b"")
    with whole_folder(Path(folder), needed_bytes=needed, replaceable=OWN_FILES if replace else None) as temporary:
        _write_shards(_checked(pairs, shapes, dtype), temporary, max_shard_bytes)
        _write_json(temporary / CONFIG_FILE, to_hf_config(config, dtype=dtype))
        _write_json(temporary / "generation_config.json", to_generation_config(config))
        if tokenizer is not None:
            (temporary / TOKENIZER_FILE).write_bytes(tokenizer)


def _checked(
    pairs: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU in ``dtype``, each compared with its expected shape; at the end all must have come."""
    seen: set[str] = set()
    for name, tensor in pairs:
        if name not in shapes or name in seen:
            what = "came twice" if name in seen else "is not a weight of this model"
            hint = nearest(name, shapes)
            raise WeightsError(f"{what}; nearest names: {', '.join(hint)}.", key=name, fix="merge adapters before writing a model.")
        if tuple(tensor.shape) != shapes[name]:
            raise WeightsError(
                f"has shape {list(tensor.shape)}, but the model's is {list(shapes[name])}.",
                key=name,
                fix="give full tensors, gathered from all processes.",
            )
        seen.add(name)
        yield name, tensor.detach().to("cpu", dtype).contiguous()
    missing = [name for name in shapes if name not in seen]
    if missing:
        raise WeightsError(f"the weight is missing{and_more(missing)}.", key=missing[0], fix="write all tensors of the model.")


def _write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
