"""A folder that is to be published: that it holds a whole model or adapter, and nothing that has no place on a hub.

Exercise it: ``pytest tests/ms4_train/weights/hub/test_local_model.py``.

Not covered: that the tensors are those of a model of ours (``ms4 weights inspect`` tells); names, shapes and sums are enough to publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ms4_train.errors import WeightsError
from ms4_train.untrusted import parse_json, read_bytes, read_safetensors_header
from ms4_train.weights.checksums import SUMS_FILE, is_plain_name, read_sums
from ms4_train.weights.hub.download import STAGING_FOLDER
from ms4_train.weights.hub.selection import RECORD_FILE, copies_in, is_code, is_pickle
from ms4_train.weights.layouts.names import and_more

MAX_INDEX_BYTES = 64 << 20
_UNFINISHED = (".partial", ".tmp", ".incomplete")


@dataclass(frozen=True)
class LocalModel:
    """A folder fit to be published: the files that go, what stays, which copies they are, and the sums it states."""

    folder: Path
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    copies: tuple[str, ...]
    stated_sums: dict[str, str]


def read_local_model(folder: Path) -> LocalModel:
    """Look through a folder; headers and names are read, not the tensors.

    Raises:
        WeightsError: no model or adapter is in it, a shard is missing, an unfinished download or conversion, a pickle, a link.
        UntrustedInputError: a safetensors file is cut off or damaged; an index or ``SHA256SUMS`` is malformed.
    """
    if not folder.is_dir():
        raise WeightsError("there is no such folder.", file=folder, fix="give the folder of a model or an adapter.")
    names: list[str] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        (names if _goes(path) else left_out).append(path.name)
    copies = copies_in(names)
    if not copies:
        raise WeightsError(
            "is no model folder: neither config.json with model*.safetensors, nor params.json with consolidated*.safetensors, nor"
            " adapter_config.json with adapter_model*.safetensors.",
            file=folder,
            fix="give the folder of a model or an adapter.",
        )
    for name in names:
        if name.endswith(".safetensors"):
            read_safetensors_header(folder / name)
        elif name.endswith(".safetensors.index.json"):
            _check_index(folder / name, names)
    sums = read_sums(folder) or {}
    return LocalModel(folder, tuple(names), tuple(left_out), tuple(copies), sums)


def _goes(path: Path) -> bool:
    """Whether a file is published; raises for what must not be there at all."""
    name = path.name
    if name == STAGING_FOLDER:
        raise WeightsError("holds an unfinished pull.", file=path.parent, fix="finish it with the same `ms4 pull`, or delete .pull.")
    if name.endswith(_UNFINISHED):
        raise WeightsError("is what an interrupted program left.", file=path, fix="finish or repeat what wrote it, or delete it.")
    if name.startswith(".") or path.is_dir():
        return False
    if path.is_symlink() or not path.is_file():
        # Following a link could publish any file of this machine.
        raise WeightsError("is a link or a device, not a file.", file=path, fix="put a copy of the file in its place.")
    if not is_plain_name(name):
        raise WeightsError(f"{name!r} is not a name that every system can store.", file=path.parent, fix="rename the file.")
    if is_pickle(name):
        raise WeightsError("may be a pickle, which runs code when it is loaded.", file=path, fix="delete it, or move it elsewhere.")
    return name != RECORD_FILE and not is_code(name)


def _check_index(path: Path, names: list[str]) -> None:
    content = parse_json(read_bytes(path, max_bytes=MAX_INDEX_BYTES), file=path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise WeightsError("has no weight_map.", file=path, fix="write the model again.")
    missing = sorted(set(weight_map.values()) - set(names))
    if missing:
        raise WeightsError(
            f"names {missing[0]!r:.200}, which is not in the folder{and_more(missing)}.", file=path, fix="complete the folder."
        )


def check_stated_sums(model: LocalModel, found: dict[str, str]) -> None:
    """Compare hashes with the folder's ``SHA256SUMS``, where it has one.

    Args:
        model: the folder.
        found: name -> SHA-256, of all files that go.

    Raises:
        WeightsError: a file that the sums name is missing or differs; the first is named, the others counted.
    """
    bad = [
        name for name, digest in sorted(model.stated_sums.items()) if found.get(name, digest if name in model.left_out else None) != digest
    ]
    if bad:
        what = f"differs from {SUMS_FILE}" if bad[0] in found else f"is named by {SUMS_FILE} and is missing"
        raise WeightsError(f"{what}{and_more(bad)}.", file=model.folder / bad[0], fix="get the file again from its source.")
