"""Conversion of a checkpoint against copying the same files on the same disk: wall time, both with everything flushed to the disk.

The source is about 1.3 GB of random values in BF16, or 0.7 GB in FP8. Copying is ``shutil.copy`` of every file and ``fsync``.
Conversion runs with its default settings: hashes of the result in ``SHA256SUMS``, its journal, flushed and renamed; one case has
``SHA256SUMS`` in the source too, which is then read and hashed before anything is written. Speeds count the bytes read and the bytes
written of each program, which matters where the result is larger than the source. The page cache is warm for all, the targets are
deleted before each run, and the disk's queue is emptied (``sync``) before each clock starts.
Exercise it: ``python benchmarks/bench_convert.py --repeats 1``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import support
import torch
from rich.console import Console
from rich.table import Table

from ms4_train.model import TextConfig
from ms4_train.storage import atomic_write_text, fsync_file, fsync_folder
from ms4_train.weights.checksums import folder_sums, write_sums
from ms4_train.weights.convert import convert, plan_files
from ms4_train.weights.layouts.hf_config import to_hf_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable
from ms4_train.weights.reading.checkpoint import open_checkpoint

COPY = "shutil.copy + fsync"
SHARD_BYTES = 400 << 20


def config() -> ModelConfig:
    """Width 2048, 6 layers, 16 experts of width 1024: matrices of 4 MB in BF16, as many bytes as a few layers of the release."""
    text = TextConfig(
        vocab_size=16384,
        hidden_size=2048,
        intermediate_size=4096,
        moe_intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_routed_experts=16,
        num_experts_per_tok=4,
    )
    return ModelConfig(text)


def make_source(folder: Path, layout: Layout) -> None:
    """Random weights in a layout, in files of about 400 MB."""
    table = LayoutTable(layout, config(), HfNames.TEXT)
    plan = plan_files(table, SHARD_BYTES)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    for file in plan.files:
        with (folder / file.name).open("wb") as handle:
            handle.write(file.header)
            for name, (start, stop) in file.spans.items():
                spec = plan.specs[name]
                if spec.kind == "scalar":
                    handle.write(torch.rand(spec.shape, generator=generator).add_(0.5).bfloat16().reshape(-1).view(torch.uint8).numpy())
                elif spec.kind == "fp8":
                    handle.write(torch.randint(0, 0x7F, (stop - start,), generator=generator, dtype=torch.uint8).numpy())
                else:
                    handle.write(torch.randn(spec.shape, generator=generator).bfloat16().reshape(-1).view(torch.uint8).numpy())
    content = to_hf_config(config().text, dtype=torch.bfloat16) if layout.is_hf else to_params(config(), layout)
    (folder / ("config.json" if layout.is_hf else "params.json")).write_text(json.dumps(content))
    if plan.index_name is not None:
        (folder / plan.index_name).write_text(json.dumps(plan.index()))
    open_checkpoint(folder).close()


def copy(source: Path, target: Path) -> None:
    """Copy every file of a folder and flush it."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copy(path, target / path.name)
        fsync_file(target / path.name)
    fsync_folder(target)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def clean(path: Path) -> None:
    """Delete a folder and empty the disk's queue."""
    shutil.rmtree(path, ignore_errors=True)
    os.sync()


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(source: Path, room: Path, to: Layout, repeats: int) -> dict[str, Any]:
    """Interleaved pairs; the first result is converted back and compared with the source before anything is timed."""
    ours, theirs = room / "converted", room / "copied"
    seconds: dict[str, list[float]] = {support.OURS: [], COPY: []}
    convert(source, ours, to=to, max_shard_bytes=SHARD_BYTES, progress=None)
    checked = check(source, ours, room)
    sizes = {support.OURS: folder_bytes(source) + folder_bytes(ours), COPY: 2 * folder_bytes(source)}
    for repeat in range(repeats):
        for name in list(seconds) if repeat % 2 == 0 else reversed(list(seconds)):
            clean(ours)
            clean(theirs)
            if name == COPY:
                seconds[name].append(timed(lambda: copy(source, theirs)))
            else:
                seconds[name].append(timed(lambda: convert(source, ours, to=to, max_shard_bytes=SHARD_BYTES, progress=None)))
    clean(ours)
    clean(theirs)
    speeds = {name: [sizes[name] / value for value in values] for name, values in seconds.items()}
    ratios = [mine / other for mine, other in zip(speeds[support.OURS], speeds[COPY], strict=True)]
    return {
        "checked": checked,
        "bytes_read_and_written": sizes,
        "seconds": seconds,
        "gigabytes_per_second_median": {name: statistics.median(values) / 1e9 for name, values in speeds.items()},
        "speed_over_copy_median": statistics.median(ratios),
        "speed_over_copy_min": min(ratios),
        "speed_over_copy_max": max(ratios),
        "time_over_copy_median": statistics.median(mine / other for mine, other in zip(seconds[support.OURS], seconds[COPY], strict=True)),
    }


def check(source: Path, converted: Path, room: Path) -> str:
    """Convert back to the source's layout; stops the program where a byte of a weight file differs."""
    layout = open_checkpoint(source).layout
    back = room / "back"
    convert(converted, back, to=layout, max_shard_bytes=SHARD_BYTES, progress=None)
    names = [path.name for path in source.glob("*.safetensors")]
    if folder_sums(source, names) != folder_sums(back, names):
        raise SystemExit(f"{source.name} did not come back as it was")
    clean(back)
    return f"converted back to {layout}: all {len(names)} weight files identical to the byte"


def report(cases: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the JSON result."""
    table = Table(title="bench_convert: wall time, everything on the disk; speed / copy of 0.5 and more is wanted")
    for heading in ("case", "program", "GB/s read + written", "speed / copy (min - max)"):
        table.add_column(heading, justify="right" if "/" in heading else "left")
    for case, result in cases.items():
        for name, speed in result["gigabytes_per_second_median"].items():
            span = f"{result['speed_over_copy_median']:.2f} ({result['speed_over_copy_min']:.2f} - {result['speed_over_copy_max']:.2f})"
            table.add_row(case if name == support.OURS else "", name, f"{speed:.2f}", span if name == support.OURS else "")
    Console(width=130).print(table)
    result = {
        "program": "bench_convert",
        "command": f"python benchmarks/bench_convert.py --repeats {options.repeats}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": support.cpu_name(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "safetensors": safetensors.__version__},
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out, json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Runs all cases in a folder beside the result, so on a disk and not in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs of each case (default %(default)s)")
    parser.add_argument("--out", type=Path, default=support.RESULTS / "convert.json", help="JSON result")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where 6 GB may be written (default %(default)s)")
    options = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        room = Path(made)
        make_source(room / "hf", Layout.HF)
        cases["hf -> native, BF16"] = compare(room / "hf", room, Layout.NATIVE, options.repeats)
        write_sums(room / "hf", folder_sums(room / "hf", [path.name for path in (room / "hf").iterdir()]))
        cases["hf -> native, BF16, source's SHA256SUMS checked first"] = compare(room / "hf", room, Layout.NATIVE, options.repeats)
        shutil.rmtree(room / "hf")
        make_source(room / "native-fp8", Layout.NATIVE_FP8)
        cases["native-fp8 -> hf, BF16"] = compare(room / "native-fp8", room, Layout.HF, options.repeats)
    report(cases, options)


if __name__ == "__main__":
    main()
