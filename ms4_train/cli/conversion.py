"""What ``ms4 weights convert`` understands and shows: sizes of files, the plan of a dry run, the report at the end.

Exercise it: ``ms4 weights convert SOURCE OUT --to native --dry-run`` and ``pytest tests/ms4_train/cli/test_conversion.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ms4_train.errors import WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.weights.convert import ConversionReport
    from ms4_train.weights.layouts.detect import FamilyChoice

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of ``5GB`` (thousands), ``5GiB`` (1024s) or a plain number.

    Raises:
        WeightsError: it is no size, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit is not None else 0
    if size < 1:
        raise WeightsError(f"{text!r} is no size.", key="--max-shard-size", fix="write it as 5GB, 500MB or 5GiB.")
    return size


def print_plan(
    source: Path,
    out: Path,
    *,
    to: str,
    family: FamilyChoice,
    scales: Path | None,
    weight_scales: str,
    dtype: str | None,
    max_shard_bytes: int,
    console: Console,
) -> bool:
    """Say what a conversion would write, without writing; returns whether there is room for it.

    Raises:
        MS4Error: whatever the conversion itself would refuse before it writes.
    """
    from ms4_train.storage import free_bytes
    from ms4_train.weights import open_checkpoint
    from ms4_train.weights.convert import plan_files
    from ms4_train.weights.convert.small_files import small_files
    from ms4_train.weights.convert.target import make_target
    from ms4_train.weights.folder import MARGIN_BYTES, refuse_foreign_content
    from ms4_train.weights.layouts.tables import Layout

    refuse_foreign_content(out, None)
    checkpoint = open_checkpoint(source, family=family)
    target = make_target(checkpoint, Layout(to), scales=scales, weight_scales=weight_scales, dtype=dtype)  # type: ignore[arg-type]
    plan = plan_files(target.table, max_shard_bytes, specs=target.specs)
    beside = small_files(checkpoint, target, plan)
    needed = plan.num_bytes + sum(map(len, beside.values()))
    free = free_bytes(out)
    has_room = free is None or free >= needed + MARGIN_BYTES

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"{source}: {checkpoint.layout.value}, {len(checkpoint.stored):,} tensors, {checkpoint.num_bytes:,} bytes")
    line(f"{out}: {to}, {len(target.specs):,} tensors, {plan.num_bytes:,} bytes in {len(plan.files):,} files")
    for file in plan.files:
        line(f"  {file.name}: {len(file.spans):,} tensors, {file.num_bytes:,} bytes")
    line("  " + ", ".join([*sorted(beside), "SHA256SUMS"]))
    left = "an unknown number of bytes" if free is None else f"{free:,} bytes"
    line(f"free: {left}" + ("" if has_room else "; too little"), None if has_room else "red")
    line("nothing was written")
    return has_room


def print_report(report: ConversionReport, console: Console) -> None:
    """Print what a conversion did: bytes, seconds, speed, what was resumed, what was clipped."""
    saturation = report.saturation_line()
    lines = [text for text in report.lines() if text != saturation]
    if not report.is_resumed and report.seconds > 0:
        moved = (report.source_bytes + report.target_bytes) / 1e6
        lines.append(f"{report.target_bytes / 1e6 / report.seconds:,.0f} MB/s written ({moved:,.1f} MB read and written)")
    lines.append("the source's SHA256SUMS matched" if report.is_checked else "the source's files were not compared with sums")
    if report.has_sidecar:
        lines.append("fp8_scales.json keeps the FP8 scales, for a later conversion back")
    lines.append(f"{sum(report.saturated.values()):,} values clipped at their scale")
    for text in lines:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if saturation is not None:
        console.print(saturation, style="yellow", highlight=False, markup=False, soft_wrap=True)
