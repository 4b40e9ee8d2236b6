"""Writing a checkpoint folder that transformers loads and that is whole or absent.

Tensors arrive one by one (they may be gathered from other processes as they are asked for) and are written in shards, so that the peak
is one shard; each shard is hashed while the next one is made. What nobody trained here comes from the base as it lies there: vision
weights, the files beside the weights, FP8 scales. Exercise it: ``pytest tests/ms4_train/weights/test_writer.py``, and
``test_writer_vision.py`` beside it.

Not covered: layouts other than Hugging Face's in one type (``ms4_train.weights.convert`` makes those from what is written here).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.untrusted import read_bytes
from ms4_train.weights.checksums import SUMS_FILE, file_sha256, write_sums
from ms4_train.weights.companions import COMPANIONS, read_companions
from ms4_train.weights.folder import whole_folder
from ms4_train.weights.layouts.detect import INDEX_FILES, SINGLE_FILES
from ms4_train.weights.layouts.hf_config import CONFIG_FILE, to_generation_config, to_hf_model_config
from ms4_train.weights.layouts.names import and_more, nearest
from ms4_train.weights.layouts.pieces import ModelConfig, Part, Piece
from ms4_train.weights.layouts.tables import HfNames, is_vision_name
from ms4_train.weights.reading.checkpoint import Checkpoint
from ms4_train.weights.reading.loading import expected_shapes
from ms4_train.weights.scales_file import SCALES_FILE, read_scales, scales_of, scales_text

SINGLE_FILE, INDEX_FILE = SINGLE_FILES["hf"], INDEX_FILES["hf"]
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tekken.json"
MAX_TOKENIZER_BYTES = 64 << 20
OWN_FILES = (SINGLE_FILE, "model-*.safetensors", INDEX_FILE, CONFIG_FILE, GENERATION_FILE, SUMS_FILE, SCALES_FILE, *COMPANIONS)
"""What a written folder consists of; a folder of nothing else may be replaced."""
_OF_A_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges")
"""Beginnings of the names of files that say in Hugging Face's words what tekken.json says."""


def save_model(
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    folder: str | Path,
    *,
    config: TextConfig,
    vision: VisionConfig | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    base: Checkpoint | None = None,
    max_shard_bytes: int = 5 << 30,
    replace: bool = True,
) -> None:
    """Write a model in transformers' layout: safetensors, ``config.json``, ``generation_config.json``, the tokenizer and ``SHA256SUMS``.

    Everything is written beside ``folder``, flushed, and renamed when whole; the free space is checked first. With vision the model is
    written as ``Mistral3ForConditionalGeneration``, under the names of the public repository's files, else as a text model.

    Args:
        state: full tensors under our names, as a mapping or as pairs that may be made one at a time: all of the text, and those of the
            vision that the base does not give.
        folder: where to; made, with its parents.
        config: of the text network; its softmax scale is written so that transformers computes it.
        vision: of tower and projector; default: the base's.
        dtype: type of the stored tensors, but for vision weights of the base; None keeps that of the first tensor.
        tokenizer_file: copied as ``tekken.json``; default: the base's.
        base: what the model was made from, in any layout. Its vision weights that are not given, or have not changed, go along bit for
            bit, in their own type, and so do its companions (``ms4_train.weights.companions``) and, as ``fp8_scales.json``, its FP8 scales.
        max_shard_bytes: a file holds at most this much, or one tensor.
        replace: whether an earlier checkpoint written here may be replaced; other content never is.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen, or what the base gives cannot be read.
        StorageError: the disk is full, or ``folder`` holds other files.
        UntrustedInputError: the tokenizer or a companion cannot be read.
    """
    pairs = cast(Iterator[tuple[str, Tensor]], iter(state.items() if isinstance(state, Mapping) else state))
    if dtype is None:
        first = next(pairs, None)
        if first is None:
            raise WeightsError("there are no tensors to write.", file=folder)
        dtype = first[1].dtype
        pairs = itertools.chain([first], pairs)
    small_files = _small_files(config, tokenizer_file, base)
    whole = ModelConfig(config, _vision_of(config, vision, base))
    names = HfNames.TEXT if whole.vision is None else HfNames.DISK
    shapes = expected_shapes(config, whole.vision)
    carried = _Carried(base)
    needed = sum(max(math.prod(shape) * dtype.itemsize, carried.num_bytes(name)) for name, shape in shapes.items())
    needed += sum(map(len, small_files.values()))
    with whole_folder(Path(folder), needed_bytes=needed, replaceable=OWN_FILES if replace else None) as temporary:
        tensors = _checked(pairs, shapes, dtype, carried)
        sums = _write_shards(((names.stored(name), tensor) for name, tensor in tensors), temporary, max_shard_bytes)
        _write_json(temporary / CONFIG_FILE, to_hf_model_config(whole, dtype=dtype))
        for name, content in small_files.items():
            (temporary / name).write_bytes(content)
        rest = (path.name for path in temporary.iterdir() if path.name not in sums)
        write_sums(temporary, sums | {name: file_sha256(temporary / name) for name in sorted(rest)})


class _Carried:
    """The vision weights of a base, read one at a time."""

    def __init__(self, base: Checkpoint | None) -> None:
        self._base = base
        pieces = () if base is None else base.pieces().values()
        self.pieces: dict[str, Piece] = {piece.name: piece for piece in pieces if piece.part is Part.VISION}

    def num_bytes(self, name: str) -> int:
        """Bytes of a weight as stored; 0 where the base does not have it."""
        if self._base is None or name not in self.pieces:
            return 0
        return self._base.stored[self._base.place(self.pieces[name]).values].num_bytes

    def read(self, name: str) -> Tensor:
        """A weight in the type in which it is stored."""
        assert self._base is not None
        tensor = self._base.read_piece(self.pieces[name])
        assert isinstance(tensor, Tensor), "no layout quantises vision"
        return tensor

    def unchanged(self, name: str, tensor: Tensor) -> Tensor | None:
        """The stored weight where ``tensor`` is what reading it into that type gives, else None."""
        if name not in self.pieces:
            return None
        stored = self.read(name)
        return stored if torch.equal(stored.to(tensor.dtype), tensor) else None


def _vision_of(config: TextConfig, vision: VisionConfig | None, base: Checkpoint | None) -> VisionConfig | None:
    """The vision part of what is written: the caller's or the base's, which must not contradict each other."""
    if base is None or base.config.vision is None:
        return vision
    if base.config.text.hidden_size != config.hidden_size:
        what = f"is {config.hidden_size}, but the base whose vision should go along has {base.config.text.hidden_size}."
        raise WeightsError(what, file=base.folder, key="hidden_size", fix="give the model that these weights were made from.")
    if vision is not None and vision != base.config.vision:
        key = next(
            field.name for field in dataclasses.fields(vision) if getattr(vision, field.name) != getattr(base.config.vision, field.name)
        )
        what = f"is {getattr(vision, key)}, but the base has {getattr(base.config.vision, key)}."
        raise WeightsError(what, file=base.folder, key=key, fix="give the model that these weights were made from.")
    return base.config.vision


def _small_files(config: TextConfig, tokenizer_file: Path | None, base: Checkpoint | None) -> dict[str, bytes]:
    """Name -> content of everything that is neither weights nor the model's configuration."""
    files = {GENERATION_FILE: _json_bytes(to_generation_config(config))}
    if base is not None:
        files |= read_companions(base.folder)
        scales = scales_of(base)
        if not scales and (base.folder / SCALES_FILE).exists():
            scales = read_scales(base.folder / SCALES_FILE, base.config)  # the base was itself made from an FP8 one
        if scales:
            files[SCALES_FILE] = scales_text(scales).encode()
    if tokenizer_file is not None:
        tokenizer = read_bytes(tokenizer_file, max_bytes=MAX_TOKENIZER_BYTES)
        if files.get(TOKENIZER_FILE, tokenizer) != tokenizer:  # another tokenizer than the base's, whose other forms would contradict it
            files = {name: content for name, content in files.items() if not name.startswith(_OF_A_TOKENIZER)}
        files[TOKENIZER_FILE] = tokenizer
    return files


def _checked(
    pairs: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, carried: _Carried
) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU in ``dtype``, each compared with its expected shape; at the end all must have come, or be carried."""
    seen: set[str] = set()
    for name, tensor in pairs:
        if name not in shapes or name in seen:
            what = "came twice" if name in seen else "is not a weight of this model"
            hint = nearest(name, shapes)
            is_vision = is_vision_name(name) and not any(map(is_vision_name, shapes))
            fix = "give the configuration of the vision too." if is_vision else "merge adapters before writing a model."
            raise WeightsError(f"{what}; nearest names: {', '.join(hint)}.", key=name, fix=fix)
        if tuple(tensor.shape) != shapes[name]:
            raise WeightsError(
                f"has shape {list(tensor.shape)}, but the model's is {list(shapes[name])}.",
                key=name,
                fix="give full tensors, gathered from all processes.",
            )
        seen.add(name)
        found = tensor.detach().cpu()
        stored = carried.unchanged(name, found)
        yield name, found.to(dtype).contiguous() if stored is None else stored
    missing = [name for name in shapes if name not in seen]
    lost = [name for name in missing if name not in carried.pieces]
    if lost:
        raise WeightsError(f"the weight is missing{and_more(lost)}.", key=lost[0], fix="write all tensors of the model.")
    for name in missing:
        yield name, carried.read(name)


def _write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_shard_bytes: int) -> dict[str, str]:
    """Write the tensors into files of at most ``max_shard_bytes`` and, for several, their index; returns file name -> SHA-256."""
    shards: list[list[str]] = []
    digests: list[Future[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0
    with ThreadPoolExecutor(1) as hashing:

        def flush() -> None:
            path = folder / f"shard-{len(shards)}"
            save_file(pending, path, metadata={"format": "pt"})
            digests.append(hashing.submit(file_sha256, path))  # now, while the system still has the file in memory
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
        sums = [digest.result() for digest in digests]
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE_FILE)
        return {SINGLE_FILE: sums[0]}
    weight_map: dict[str, str] = {}
    files: dict[str, str] = {}
    for number, (names, digest) in enumerate(zip(shards, sums, strict=True)):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
        files[file_name] = digest
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))})
    return files


def _write_json(path: Path, content: object) -> None:
    path.write_bytes(_json_bytes(content))


def _json_bytes(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
