"""Reading a folder of safetensors files into a model, strictly: each tensor of the model once, in shape, and nothing left over.

Headers are checked before any tensor is read; then tensors are read one at a time into a model that was built without memory.
Exercise it: ``pytest tests/ms4_train/weights/test_reader.py``.

Not covered: Mistral-native files and quantised tensors (refused with a message), and the values of tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ms4_train.errors import UntrustedInputError, WeightsError
from ms4_train.untrusted import TensorInfo, parse_json, read_bytes, read_safetensors_header
from ms4_train.weights.names import and_more, is_quantised_name, is_vision_name, nearest, text_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
_READABLE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: its file, its name there, and what the header says of it."""

    file: Path
    stored_name: str
    info: TensorInfo


@dataclass(frozen=True)
class StoredCheckpoint:
    """The text tensors of a checkpoint by our names, and the names of the vision tensors beside them."""

    folder: Path
    tensors: dict[str, StoredTensor]
    vision_names: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type that most stored values have."""
        sizes: dict[str, int] = {}
        for stored in self.tensors.values():
            sizes[stored.info.dtype] = sizes.get(stored.info.dtype, 0) + stored.info.stop - stored.info.start
        return _READABLE[max(sizes, key=lambda name: sizes[name])]

    @property
    def num_bytes(self) -> int:
        """Bytes of all text tensors as stored."""
        return sum(stored.info.stop - stored.info.start for stored in self.tensors.values())

    @property
    def layout(self) -> str:
        """Which public layout the names are in, in words."""
        names = [stored.stored_name for stored in self.tensors.values()]
        if any(name.startswith("language_model.") for name in names):
            return "Hugging Face, multimodal (names on disk)"
        if any(name.startswith("model.language_model.") for name in names):
            return "Hugging Face, multimodal"
        return "Hugging Face, text"

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return sorted({stored.file for stored in self.tensors.values()})


def scan_checkpoint(folder: str | Path) -> StoredCheckpoint:
    """Read and check the headers of a checkpoint's files; no tensor is read.

    Raises:
        WeightsError: no readable weights, an index that does not agree with its files, a tensor stored twice, or a quantised one.
        UntrustedInputError: a file is cut off or damaged.
    """
    folder = Path(folder)
    located = list(_located_tensors(folder))
    tensors: dict[str, StoredTensor] = {}
    vision: list[str] = []
    for stored in located:
        name = stored.stored_name
        if is_vision_name(name):
            vision.append(name)
            continue
        if is_quantised_name(name) or stored.info.dtype not in _READABLE:
            what = "belongs to a quantised checkpoint" if is_quantised_name(name) else f"has type {stored.info.dtype}"
            raise WeightsError(f"{what}, which is not read.", file=stored.file, key=name, fix="use a BF16, F16 or F32 copy of the model.")
        ours = text_name(name)
        if ours in tensors:
            first = tensors[ours]
            raise WeightsError(
                f"is stored twice: also in {first.file.name} as {first.stored_name}.",
                file=stored.file,
                key=name,
                fix="delete the file that does not belong to the model, or download it again.",
            )
        tensors[ours] = stored
    if not tensors:
        raise WeightsError("the files hold no text tensors.", file=folder, fix="check that the folder holds the whole model.")
    return StoredCheckpoint(folder, tensors, tuple(vision))


def check_tensors(checkpoint: StoredCheckpoint, expected: Mapping[str, Iterable[int]]) -> None:
    """Compare a checkpoint with the names and shapes a model has.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen; names the file, the tensor, how many more, and the nearest names.
    """
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    missing = [name for name in wanted if name not in checkpoint.tensors]
    unexpected = [name for name in checkpoint.tensors if name not in wanted]
    if missing:
        hint = nearest(missing[0], unexpected)
        raise WeightsError(
            f"the weight is missing{and_more(missing)}." + (f" Nearest unused name: {', '.join(hint)}." if hint else ""),
            file=checkpoint.folder,
            key=missing[0],
            fix="download the model again; its config.json must describe these weights.",
        )
    if unexpected:
        stored = checkpoint.tensors[unexpected[0]]
        hint = nearest(unexpected[0], wanted)
        raise WeightsError(
            f"is not a weight of this model{and_more(unexpected)}." + (f" Nearest names: {', '.join(hint)}." if hint else ""),
            file=stored.file,
            key=stored.stored_name,
            fix="check that config.json belongs to these weights.",
        )
    for name, shape in wanted.items():
        stored = checkpoint.tensors[name]
        if stored.info.shape != shape:
            raise WeightsError(
                f"has shape {list(stored.info.shape)}, but config.json says {list(shape)}.",
                file=stored.file,
                key=stored.stored_name,
                fix="check that config.json belongs to these weights.",
            )


def read_tensors(
    checkpoint: StoredCheckpoint, ranges: Mapping[str, tuple[int, int]] | None = None, *, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Give every tensor under our name, one at a time, in ``dtype``, file by file.

    Args:
        checkpoint: what ``scan_checkpoint`` found.
        ranges: for these names only rows [a, b) of dim 0 are read from the disk.
        dtype: type of the tensors given.

    Raises:
        WeightsError: a file cannot be read.
    """
    ranges = ranges or {}
    for file in checkpoint.files:
        mine = {name: stored for name, stored in checkpoint.tensors.items() if stored.file == file}
        try:
            with safe_open(file, "pt") as handle:
                for name, stored in mine.items():
                    # Copied even where the type is right: the tensor read lies in the file's pages, unaligned, and follows later
                    # changes of the file; unaligned operands also change the last bits of matrix products.
                    yield name, _read_one(handle, stored, ranges.get(name)).to(dtype, copy=True)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"cannot be read ({error}).", file=file, fix="get the file again from its source.") from error


def warn_of_vision(checkpoint: StoredCheckpoint) -> None:
    """Say, once per checkpoint, that its vision tensors are left out of a text model."""
    if checkpoint.vision_names:
        _log.warning(
            "%s: %d vision tensors are left out; the model is loaded as a text model.", checkpoint.folder, len(checkpoint.vision_names)
        )


def _read_one(handle: Any, stored: StoredTensor, rows: tuple[int, int] | None) -> Tensor:
    if rows is None:
        return handle.get_tensor(stored.stored_name)
    return handle.get_slice(stored.stored_name)[rows[0] : rows[1]]


def _located_tensors(folder: Path) -> Iterator[StoredTensor]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise WeightsError(
            f"holds both {SINGLE_FILE} and {INDEX_FILE}.", file=folder, fix="delete the one that does not belong to the model."
        )
    if single.exists():
        for name, info in read_safetensors_header(single).items():
            yield StoredTensor(single, name, info)
    elif index.exists():
        yield from _indexed_tensors(folder, index)
    else:
        raise _no_weights(folder)


def _indexed_tensors(folder: Path, index: Path) -> Iterator[StoredTensor]:
    weight_map = _weight_map(index)
    for file_name in sorted(set(weight_map.values())):
        file = folder / file_name
        if not file.exists():
            raise WeightsError(
                f"names {file_name}, which is not in the folder.", file=index, key="weight_map", fix="download the missing file."
            )
        header = read_safetensors_header(file)
        listed = {name for name, where in weight_map.items() if where == file_name}
        absent = sorted(listed - header.keys())
        if absent:
            hint = nearest(absent[0], header.keys() - listed)
            raise WeightsError(
                f"the index puts it here, but the file does not hold it{and_more(absent)}."
                + (f" Nearest names: {', '.join(hint)}." if hint else ""),
                file=file,
                key=absent[0],
                fix="download the file and the index again.",
            )
        unlisted = sorted(header.keys() - listed)
        if unlisted:
            elsewhere = weight_map.get(unlisted[0])
            what = f"is stored twice: the index puts it into {elsewhere}" if elsewhere else f"is not listed in {index.name}"
            raise WeightsError(f"{what}{and_more(unlisted)}.", file=file, key=unlisted[0], fix="download the file and the index again.")
        for name, info in header.items():
            yield StoredTensor(file, name, info)


def _weight_map(index: Path) -> dict[str, str]:
    content = parse_json(read_bytes(index, max_bytes=MAX_INDEX_BYTES), file=index, max_depth=4)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError("must map tensor names to files.", file=index, key="weight_map", fix="download the index again.")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
            raise WeightsError(
                f"{name[:100]!r} is not in a .safetensors file of this folder: {str(file_name)[:100]!r}.",
                file=index,
                key="weight_map",
                fix="download the index again.",
            )
    return weight_map


def _no_weights(folder: Path) -> WeightsError | UntrustedInputError:
    if not folder.is_dir():
        return WeightsError("there is no such folder.", file=folder, fix="check model.path; relative paths start at the current folder.")
    names = sorted(entry.name for entry in folder.iterdir())
    if "params.json" in names and any(name.startswith("consolidated") for name in names):
        return WeightsError(
            "holds a Mistral-native checkpoint, which is not read.", file=folder, fix="use the Hugging Face files of the model."
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return WeightsError("holds pickled weights, which are never read.", file=folder, fix="convert them to safetensors.")
    if "adapter_config.json" in names:
        return WeightsError(
            "is an adapter, not a model.", file=folder, fix="set model.path to the base model and model.adapter to this folder."
        )
    broken = [name for name in names if name.endswith(".safetensors") and not (folder / name).exists()]
    if broken:
        return WeightsError("is a link to a file that is not there.", file=folder / broken[0], fix="download the model again.")
    stray = [name for name in names if name.endswith(".safetensors")]
    if stray:
        return WeightsError(f"holds {stray[0]} but no {INDEX_FILE}.", file=folder, fix="download the index of the model.")
    return WeightsError(f"holds neither {SINGLE_FILE} nor {INDEX_FILE}.", file=folder, fix="check model.path.")
