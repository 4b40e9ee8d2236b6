"""What ``operations.py`` measured, as a table on the screen, in Markdown, and as JSON: with device, versions, medians and spreads.

Exercise it: ``python benchmarks/operations.py --tiny``.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import support
import torch
from operations_timing import OURS, TOLERANCES, Plan, Result
from rich.console import Console
from rich.table import Table

from ms4_kernels.native import library
from ms4_train.storage import atomic_write_text

HEADINGS = ("case", "program", "ms", "GFLOP/s", "time / ours (least - most)", "saved for backward, KiB/token", "peak, MiB")


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    found: dict[str, Any] = {"cpu": support.cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        }
    else:
        found |= {"device": "cpu", "compiled_kernels": library() is not None}
    return found


def versions() -> dict[str, str]:
    """Of everything whose speed is compared."""
    names = [name for name in ("transformers", "peft", "triton", "flash-attn") if _is_installed(name)]
    return {"python": platform.python_version(), "torch": torch.__version__, **{name: metadata.version(name) for name in names}}


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.replace("-", "_")) is not None


def rows(result: Result) -> list[tuple[str, ...]]:
    """One row per contestant, under ``HEADINGS``."""
    found = []
    summary = result.summary()
    for index, name in enumerate(result.names):
        case = result.name if index == 0 else ""
        if name in result.failures:
            found.append((case, name, result.failures[name], *[""] * 4))
            continue
        row = summary[name]
        span = (
            f"{row['times_ours_median']:.2f} ({row['times_ours_min']:.2f} - {row['times_ours_max']:.2f})"
            if "times_ours_median" in row
            else ""
        )
        saved = result.saved_bytes[name] / 1024 / result.tokens
        peak = result.peak_bytes[name] / 2**20
        found.append((
            case,
            name,
            f"{1000 * row['seconds_median']:.3f}",
            f"{row['flop_per_second'] / 1e9:,.0f}" if "flop_per_second" in row else "",
            "" if name == OURS else span,
            f"{saved:.2f}" if saved else "",
            f"{peak:.0f}" if peak else "",
        ))  # fmt: skip
    return found


def show(result: Result) -> None:
    """Print one comparison as soon as it is measured."""
    table = Table(title=f"{result.operation}: {result.name}", title_justify="left")
    columns = [column for column in zip(HEADINGS, *rows(result), strict=True) if column[0] != "case" and any(column[1:])]
    for heading, *_ in columns:
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if result.differences:
        print(f"    checked first: {checked(result)}")


def checked(result: Result) -> str:
    """What was found equal before anything was timed."""
    worst = max(result.differences.values(), default=0.0)
    return f"outputs and gradients, worst relative difference {worst:.1e} (tolerance {TOLERANCES[result.dtype]:g})"


def write(results: Sequence[Result], plan: Plan, command: str, out: Path) -> list[Path]:
    """Write ``out``, and the same as Markdown beside it; returns both paths."""
    what = "seconds between events around a call" if plan.device.type == "cuda" else "CPU seconds of a call"
    content = {
        "program": "operations",
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(plan.device),
        "versions": versions(),
        "seconds_are": what,
        "cases": [_case(result) for result in results],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, json.dumps(content, indent=1) + "\n")
    table = out.with_suffix(".md")
    atomic_write_text(table, _markdown(results, content))
    return [out, table]


def _case(result: Result) -> dict[str, Any]:
    return {
        "operation": result.operation,
        "name": result.name,
        "tokens": result.tokens,
        "dtype": str(result.dtype).removeprefix("torch."),
        "flop": result.flop,
        "checked": checked(result),
        "differences": result.differences,
        "summary": result.summary(),
        "saved_bytes": result.saved_bytes,
        "peak_bytes": result.peak_bytes,
        "failures": result.failures,
        "seconds": result.seconds,
    }


def _markdown(results: Sequence[Result], content: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for part in ("machine", "versions") for key, value in content[part].items())
    lines = [
        "# Operations",
        "",
        f"`{content['command']}`, {content['date']}.",
        f"{facts}.",
        f"Medians of {content['seconds_are']}, contestants taking turns; time / ours above 1: ours is faster.",
    ]
    operation = ""
    for result in results:
        if result.operation != operation:
            operation = result.operation
            lines += ["", f"## {operation}", "", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    return "\n".join(lines) + "\n"
