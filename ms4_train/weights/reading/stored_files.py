"""The tensors in a folder's weight files: index and headers checked, bytes read by position.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_stored_files.py``.

Not covered: what the tensors should be called or be shaped like (``checkpoint``).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.untrusted import TensorInfo, parse_json, read_bytes, read_safetensors_header
from ms4_train.weights.layouts.detect import CONFIG_FILES, INDEX_FILES, NATIVE_SHARDS, SINGLE_FILES, Family, broken_link, no_weights
from ms4_train.weights.layouts.names import and_more, nearest

MAX_INDEX_BYTES = 64 << 20
_HEADERS_AT_A_TIME = 8
_MAX_FILE_NAME_BYTES = 255
_AGAIN = "download the file and the index again."

Report = Callable[[MS4Error], None]
"""Takes each problem found. ``refuse`` raises the first; an inspection collects them."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint: its file, its name there, and what the header says of it."""

    file: Path
    stored_name: str
    info: TensorInfo

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return self.info.stop - self.info.start


def refuse(error: MS4Error) -> None:
    """Raise the error."""
    raise error


def locate(folder: Path, family: Family, report: Report = refuse) -> dict[str, StoredTensor]:
    """Stored name -> tensor, from the index and the headers of all files of a family; no tensor is read.

    Raises:
        WeightsError: no readable weights, an index that does not agree with its files or leads out of the folder, a tensor stored twice.
        UntrustedInputError: a file is cut off or damaged.
    """
    single, index = folder / SINGLE_FILES[family], folder / INDEX_FILES[family]
    has_single, has_index = (path.exists() or path.is_symlink() for path in (single, index))
    may_have_shards = family == "native" and not has_index and (folder / CONFIG_FILES["native"]).exists()
    shards = sorted(folder.glob(NATIVE_SHARDS)) if may_have_shards else []
    if has_single and (has_index or shards):  # engines that take every file of the pattern would read the model twice
        other = index.name if has_index else shards[0].name
        report(WeightsError(f"holds both {single.name} and {other}.", file=folder, fix="delete the one that is not of the model."))
    weight_map: dict[str, str] = {}
    if has_single:
        files = [single]
    elif has_index:
        if not index.exists():
            report(broken_link(index))
            return {}
        try:
            weight_map = _weight_map(index)
        except MS4Error as error:
            report(error)
            return {}
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = shards
        if not files:
            report(no_weights(folder, family))
    found: dict[str, StoredTensor] = {}
    listed: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        listed.setdefault(file_name, set()).add(name)
    for file, header in _headers(files, index, report):
        if weight_map:
            _compare_with_index(file, header, listed[file.name], weight_map, index, report)
        for name, info in header.items():
            if name in found:
                if not weight_map:  # with an index the comparison above has said so
                    report(_stored_twice(file, name, found[name].file.name))
                continue
            found[name] = StoredTensor(file, name, info)
    return found


def _stored_twice(file: Path, name: str, where: str) -> WeightsError:
    return WeightsError(f"is stored twice: also in {where}.", file=file, key=name, fix="delete the file that is not of the model.")


def _headers(files: list[Path], index: Path, report: Report) -> Iterator[tuple[Path, dict[str, TensorInfo]]]:
    """The headers in the order of the files; those of several files are read side by side."""

    def read(file: Path) -> dict[str, TensorInfo] | MS4Error:
        if not file.exists():
            if file.is_symlink():
                return broken_link(file)
            return WeightsError(
                f"names {file.name}, which is not in the folder.", file=index, key="weight_map", fix="download the missing file."
            )
        try:
            return read_safetensors_header(file)
        except MS4Error as error:
            return error

    with ThreadPoolExecutor(max(1, min(_HEADERS_AT_A_TIME, len(files)))) as pool:
        for file, header in zip(files, pool.map(read, files), strict=True):
            if isinstance(header, MS4Error):
                report(header)
            else:
                yield file, header


def _compare_with_index(
    file: Path, header: dict[str, TensorInfo], listed: set[str], weight_map: dict[str, str], index: Path, report: Report
) -> None:
    absent = sorted(listed - header.keys())
    if absent:
        hint = nearest(absent[0], header.keys() - listed)
        what = f"the index puts it here, but the file does not hold it{and_more(absent)}."
        report(WeightsError(what + (f" Nearest names: {', '.join(hint)}." if hint else ""), file=file, key=absent[0], fix=_AGAIN))
    unlisted = sorted(header.keys() - listed)
    if unlisted:
        elsewhere = weight_map.get(unlisted[0])
        what = f"is stored twice: the index puts it into {elsewhere}" if elsewhere else f"is not listed in {index.name}"
        report(WeightsError(f"{what}{and_more(unlisted)}.", file=file, key=unlisted[0], fix=_AGAIN))


def _weight_map(index: Path) -> dict[str, str]:
    content = parse_json(read_bytes(index, max_bytes=MAX_INDEX_BYTES), file=index, max_depth=4)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError("must map tensor names to files.", file=index, key="weight_map", fix="download the index again.")
    sound: set[str] = set()
    for name, file_name in weight_map.items():
        if not name.isprintable():  # no header holds such a name, and a message with it could steer a terminal
            raise WeightsError(f"lists an unprintable name, {name[:100]!a}.", file=index, key="weight_map", fix=_AGAIN)
        if isinstance(file_name, str) and file_name in sound:
            continue
        if not (isinstance(file_name, str) and _is_file_of_a_folder(file_name)):
            what = f"{name[:100]!r} is not in a .safetensors file of this folder: {ascii(file_name)[:100]}."
            raise WeightsError(what, file=index, key="weight_map", fix="download the index again.")
        sound.add(file_name)
    return weight_map


def _is_file_of_a_folder(name: str) -> bool:
    """Whether it is the plain name of a safetensors file, which every system can be asked for."""
    is_plain = Path(name).name == name and name.isprintable() and len(name.encode()) <= _MAX_FILE_NAME_BYTES
    return is_plain and name.endswith(".safetensors")


class OpenFiles:
    """Files opened once each and read by position, from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}
        self._closer = weakref.finalize(self, _close_all, self._descriptors)

    def read_into(self, file: Path, offset: int, out: Tensor, *, key: str | None = None) -> None:
        """Fill ``out`` with the file's bytes from ``offset`` on.

        Args:
            file: the file.
            offset: from its start.
            out: contiguous, on the CPU.
            key: tensor named in errors.

        Raises:
            WeightsError: the file cannot be read, or ends early.
        """
        if not out.numel():
            return
        assert out.is_contiguous(), out.stride()
        view = out.detach().view(-1).view(torch.uint8).numpy().data
        try:
            descriptor = self._descriptor(file)
            while view:
                count = os.preadv(descriptor, [view], offset)  # gives at most 2 GiB at a time
                if count == 0:
                    raise _unreadable("it ends early", file, key)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise _unreadable(error.strerror or str(error), file, key) from error

    def read_bytes(self, file: Path, offset: int, count: int, *, key: str | None = None) -> bytes:
        """The ``count`` bytes from ``offset`` on; for small reads.

        Raises:
            WeightsError: as ``read_into``.
        """
        try:
            data = os.pread(self._descriptor(file), count, offset)
        except OSError as error:
            raise _unreadable(error.strerror or str(error), file, key) from error
        if len(data) != count:
            raise _unreadable("it ends early", file, key)
        return data

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            _close_all(self._descriptors)

    def _descriptor(self, file: Path) -> int:
        found = self._descriptors.get(file)
        if found is None:
            with self._lock:
                found = self._descriptors.get(file)
                if found is None:
                    found = self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return found


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.popitem()[1])


def _unreadable(reason: str, file: Path, key: str | None) -> WeightsError:
    return WeightsError(f"cannot be read ({reason}).", file=file, key=key, fix="get the file again from its source.")


def coalesced(tensors: Iterable[StoredTensor], gap: int = 1 << 14) -> Iterator[tuple[Path, int, int, list[StoredTensor]]]:
    """Group tensors that lie close together in a file: (file, start, stop, tensors), in the order of the disk."""
    group: list[StoredTensor] = []
    stop = 0
    for stored in sorted(tensors, key=lambda stored: (stored.file, stored.info.start)):
        if group and (stored.file != group[0].file or stored.info.start > stop + gap):
            yield group[0].file, group[0].info.start, stop, group
            group = []
        group.append(stored)
        stop = stored.info.stop
    if group:
        yield group[0].file, group[0].info.start, stop, group
