"""A checkpoint of any public layout turned into another one, piece by piece, in bounded memory, resumable, and whole or absent.

What is wrong with the source is found before anything is written; then the target's files are made at their full size beside the target,
filled by threads, hashed while they grow, and renamed. Exercise it: ``pytest tests/ms4_train/weights/convert``.

Not covered: NVFP4 as a target, adapters (merge them first), folders on file systems without holes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ms4_train.errors import StorageError, WeightsError
from ms4_train.storage import require_free_bytes, storage_errors
from ms4_train.weights.checksums import bytes_to_check, check_sums, read_sums, write_sums
from ms4_train.weights.companions import companion_names
from ms4_train.weights.convert.crew import Stopped, in_lanes, work_off
from ms4_train.weights.convert.encode import Encoder
from ms4_train.weights.convert.hashing import FollowingHashes
from ms4_train.weights.convert.items import Item, known_scalars, make_items
from ms4_train.weights.convert.journal import JournalState, JournalWriter, flush
from ms4_train.weights.convert.plan import DEFAULT_SHARD_BYTES, FolderPlan, plan_files
from ms4_train.weights.convert.progress import Meter, ProgressCallback, ProgressChoice, reporting
from ms4_train.weights.convert.report import ConversionReport
from ms4_train.weights.convert.small_files import left_behind, small_files
from ms4_train.weights.convert.target import Target, WeightScales, make_target
from ms4_train.weights.convert.tensor_file import bytes_of, write_at
from ms4_train.weights.convert.workplace import Workplace, source_identity
from ms4_train.weights.folder import MARGIN_BYTES
from ms4_train.weights.layouts.detect import CONFIG_FILES, FamilyChoice
from ms4_train.weights.layouts.model_config import ScaleChoice
from ms4_train.weights.layouts.tables import Layout
from ms4_train.weights.reading.checkpoint import Checkpoint, open_checkpoint
from ms4_train.weights.scales_file import SCALES_FILE, scales_text

_LOG = logging.getLogger(__name__)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Layout | str,
    family: FamilyChoice = "auto",
    softmax_scale: ScaleChoice = "auto",
    scales: str | Path | None = None,
    weight_scales: WeightScales = "kept",
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    progress: ProgressChoice = "auto",
    resume: bool = True,
    check_sums: bool = True,
) -> ConversionReport:
    """Write a checkpoint in another layout, with configuration, companions and ``SHA256SUMS``. The source is only read.

    Killed at any moment it leaves no target; the same call goes on where it stopped. A call with other arguments, or after the source
    has changed, starts anew.

    Args:
        source: folder of the checkpoint, in any layout.
        out: folder to make; absent or empty.
        to: ``hf``, ``native``, ``hf-fp8`` or ``native-fp8``.
        family: which files to read where the source holds both families.
        softmax_scale: see ``read_model_config``; decides what the result's configuration says.
        scales: for FP8 from weights that are not: an FP8 folder, or a scales file; default ``fp8_scales.json`` in the source.
        weight_scales: ``kept`` quantises with the scales found, and clips values that outgrew them (counted, and warned of); ``fitted``
            maps each matrix' largest magnitude to 448. Scales of activations are kept in both cases; where none are known, fitted
            weights are written without, with a warning.
        dtype: bfloat16 or float32, of values that are not quantised; default: as they are stored, bfloat16 for dequantised ones.
        max_shard_bytes: size of one weight file, or one tensor if that is larger.
        threads: that read, convert and write; default: one per core, eight at most.
        progress: ``auto`` for a bar on a terminal, a callable, or None.
        resume: whether to go on from an earlier run.
        check_sums: whether to compare the source's files with its ``SHA256SUMS`` first, where it has one.

    Returns:
        What was done.

    Raises:
        WeightsError: the source is not a whole, sound checkpoint, or changed meanwhile; or the target cannot be made from it.
        UntrustedInputError: a file of the source is damaged.
        StorageError: ``out`` cannot be written, or the disk is full (what is done is kept for the same call).
        KeyboardInterrupt: what is done is kept likewise.
    """
    started = time.monotonic()
    if str(to) not in list(Layout):
        raise WeightsError(f"{str(to)!r} is no layout.", key="to", fix="use hf, native, hf-fp8 or native-fp8.")
    if threads is not None and threads < 1:
        raise WeightsError(f"{threads} threads cannot work.", key="threads", fix="use 1 or more.")
    checkpoint = open_checkpoint(source, family=family, softmax_scale=softmax_scale)
    try:
        given = None if scales is None else Path(scales)
        target = make_target(checkpoint, Layout(to), scales=given, weight_scales=weight_scales, dtype=dtype)
        plan = plan_files(target.table, max_shard_bytes, specs=target.specs)
        work = _Work(checkpoint, target, plan, make_items(checkpoint, target, plan), threads or min(8, os.cpu_count() or 1), check_sums)
        beside = small_files(checkpoint, target, plan)
        with Workplace(Path(out), checkpoint.folder) as place, reporting(progress) as callback, _kept_for_later(place):
            header = work.header()
            state, reason = place.left_over(plan, header) if resume else (None, None)
            if reason is not None:
                _LOG.warning("%s: starting anew: %s", place.folder, reason)
            is_resumed, is_checked = state is not None, state is not None and state.header["checked"]
            if header["checked"] and not is_checked:
                _check_source(checkpoint, list(beside), callback)
            require_free_bytes(place.out, plan.num_bytes + sum(map(len, beside.values())) + MARGIN_BYTES - place.bytes_on_disk())
            if state is None:
                state = place.begin(plan, header)
            written = work.carry_out(place, state, beside, callback)
        outcome = _Outcome(state, written, reason, is_resumed, header["checked"] or is_checked, time.monotonic() - started)
        report = work.report(place.out, beside, outcome)
    finally:
        checkpoint.close()
    if (line := report.saturation_line()) is not None:
        _LOG.warning("%s: %s", report.folder, line)
    return report


@contextlib.contextmanager
def _kept_for_later(place: Workplace) -> Iterator[None]:
    """Errors of the disk as ``StorageError``; whoever is interrupted is told that the work is not lost."""
    try:
        with storage_errors(place.out):
            yield
    except StorageError as error:
        kept = " The same command then goes on where this one stopped." if place.has_journal else ""
        raise type(error)(error.message, file=error.file, fix=f"{error.fix or 'check the disk.'}{kept}") from error
    except KeyboardInterrupt:
        if place.has_journal:
            _LOG.warning("interrupted: what is done is kept in %s; the same command goes on from there.", place.folder)
        raise


def _check_source(checkpoint: Checkpoint, beside: list[str], callback: ProgressCallback | None) -> None:
    """Compare the weight files, and what else is read, with the source's ``SHA256SUMS``."""
    listed = read_sums(checkpoint.folder) or {}
    others = {*beside, CONFIG_FILES[checkpoint.family], SCALES_FILE} & listed.keys()
    names = [*(file.name for file in checkpoint.files), *sorted(name for name in others if (checkpoint.folder / name).exists())]
    meter = Meter(callback, "checking", bytes_to_check(checkpoint.folder, names))
    check_sums(checkpoint.folder, names, progress=meter.add)


@dataclass(frozen=True)
class _Outcome:
    """How it went; fields as of ``ConversionReport``."""

    state: JournalState
    written: int
    restarted: str | None
    is_resumed: bool
    is_checked: bool
    seconds: float


@dataclass(frozen=True)
class _Work:
    """One conversion, planned."""

    source: Checkpoint
    target: Target
    plan: FolderPlan
    items: list[Item]
    threads: int
    check_sums: bool

    def header(self) -> dict[str, Any]:
        """What the journal says that the conversion is. Everything in it is JSON as JSON gives it back."""
        source, target = self.source, self.target
        digest = hashlib.sha256()
        for file in self.plan.files:
            digest.update(file.header)
        for item in self.items:
            digest.update(repr((item.number, item.action, [piece.name for piece in item.pieces], item.extents)).encode())
        arguments = {
            "folder": str(source.folder.resolve()),
            "family": source.family,
            "softmax_scale": source.config.text.softmax_scale,
            "to": str(target.table.layout),
            "fitted": target.is_fitted,
            "scales": hashlib.sha256(scales_text(target.scales or target.sidecar).encode()).hexdigest(),
            "tensors": hashlib.sha256(b"".join(file.header for file in self.plan.files)).hexdigest(),
        }
        identity = [self._files(), [_header_sum(file) for file in source.files]]
        checked = self.check_sums and read_sums(source.folder) is not None
        return json.loads(json.dumps({"arguments": arguments, "source": identity, "plan": digest.hexdigest(), "checked": checked}))

    def _files(self) -> list[list[Any]]:
        return source_identity([*self.source.files, self.source.folder / CONFIG_FILES[self.source.family]])

    def report(self, folder: Path, beside: dict[str, bytes], outcome: _Outcome) -> ConversionReport:
        """What was done."""
        names = companion_names(self.source.folder)
        return ConversionReport(
            folder=folder,
            source_layout=self.source.layout,
            layout=self.target.table.layout,
            files=tuple(file.name for file in self.plan.files),
            source_bytes=self.source.num_bytes,
            target_bytes=self.plan.num_bytes,
            items=len(self.items),
            items_written=outcome.written,
            restarted=outcome.restarted,
            is_resumed=outcome.is_resumed,
            is_checked=outcome.is_checked,
            has_sidecar=bool(self.target.sidecar),
            companions=tuple(name for name in names if name in beside),
            left_behind=left_behind(self.source, beside),
            skipped=self.source.skipped,
            seconds=outcome.seconds,
            saturated=dict(outcome.state.saturated),
        )

    def carry_out(self, place: Workplace, state: JournalState, beside: dict[str, bytes], callback: ProgressCallback | None) -> int:
        """Write what is not done yet, then everything else, and give the result its name; returns the number of items written."""
        before = self._files()
        paths = [place.files / file.name for file in self.plan.files]
        todo = [item for item in self.items if item.number not in state.done]
        lanes = min(len(paths), self.threads)  # files that are written, and hashed, side by side
        meter = Meter(callback, "converting", self.plan.num_bytes, self.plan.num_bytes - sum(item.num_bytes for item in todo))
        stop = threading.Event()
        hashes = FollowingHashes([(path, file.num_bytes) for path, file in zip(paths, self.plan.files, strict=True)], lanes)
        try:
            self._write_known(paths, hashes)
            for item in self.items:
                if item.number in state.done:
                    for extent in item.extents:
                        hashes.wrote(extent.file, extent.start, extent.stop)
            journal = JournalWriter(place.folder, paths, state)

            def wrote(file: int, start: int, end: int) -> None:
                hashes.wrote(file, start, end)
                meter.add(end - start)
                if stop.is_set():
                    raise Stopped

            encoder = Encoder(self.source, self.target, self.plan, place.files, wrote)

            def work(item: Item) -> None:
                clipped = encoder.run(item)
                state.saturated.update(clipped)
                journal.done(item.number, {extent.file for extent in item.extents}, item.num_bytes, clipped)
                if journal.error is not None:
                    raise journal.error

            try:
                work_off(in_lanes(todo, lambda item: item.values[0].file, lanes), work, self.threads, stop)
            finally:
                journal.close()
            for path in paths:
                flush(path)
            sums = hashes.results()
        finally:
            hashes.stop()
        if self._files() != before:
            raise WeightsError("changed while it was being converted.", file=self.source.folder, fix="convert it again.")
        for name, content in beside.items():
            (place.files / name).write_bytes(content)
        write_sums(place.files, sums | {name: hashlib.sha256(content).hexdigest() for name, content in beside.items()})
        place.commit()
        return len(todo)

    def _write_known(self, paths: list[Path], hashes: FollowingHashes) -> None:
        """Report the headers, which are there, and write the scales that are known before any weight is read."""
        for number, file in enumerate(self.plan.files):
            hashes.wrote(number, 0, len(file.header))
        found: dict[int, list[tuple[int, memoryview]]] = {}
        for name, values in known_scalars(self.target, self.plan):
            extent = self.plan.tensor(name)
            found.setdefault(extent.file, []).append((extent.start, bytes_of(values)))
        for number, entries in found.items():
            descriptor = os.open(paths[number], os.O_WRONLY | os.O_CLOEXEC)
            try:
                for start, data in entries:
                    write_at(descriptor, data, start)
                    hashes.wrote(number, start, start + data.nbytes)
            finally:
                os.close(descriptor)


def _header_sum(file: Path) -> str:
    """SHA-256 of a safetensors file's header."""
    with file.open("rb") as handle:
        length = handle.read(8)
        return hashlib.sha256(length + handle.read(int.from_bytes(length, "little"))).hexdigest()
