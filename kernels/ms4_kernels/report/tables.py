"""The report as tables: what was compiled, what moves, what is padded, which gates hold. One content for Markdown, JSON and the terminal.

Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_tables.py``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ms4_kernels.report.compiler import Compiled
from ms4_kernels.report.release import TrafficRow
from ms4_kernels.report.waste import Waste

__all__ = ["NO_TIME", "Report", "as_markdown", "print_report", "write_report"]

NO_TIME = (
    "No time was measured and no GPU was used: these are figures of binaries compiled ahead of time and of arithmetic. They say nothing of "
    "speed, of hits in the L2 cache or of conflicts in shared memory."
)
_MIB = 2**20


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        made: date and time.
        command: that made it.
        versions: program -> version.
        compiled: by kernel, configuration and target.
        traffic: by size and operation.
        waste: by kernel and size.
        gates: gate -> violations.
    """

    made: str
    command: str
    versions: Mapping[str, str]
    compiled: Sequence[Compiled]
    traffic: Sequence[TrafficRow]
    waste: Sequence[Waste]
    gates: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Grid:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    lines = ["# Triton kernels, compiled ahead of time", "", f"**{NO_TIME}**", ""]
    lines += [f"Made {report.made} with `{report.command}`. " + ", ".join(f"{name} {version}" for name, version in report.versions.items())]
    for grid in _grids(report):
        lines += ["", f"## {grid.title}", "", _line(grid.columns), _line(["---"] * len(grid.columns)), *map(_line, grid.rows)]
    broken = [line for found in report.gates.values() for line in found]
    if broken:
        lines += ["", "## Violations", "", *(f"- {line}" for line in broken)]
    return "\n".join(lines) + "\n"


def print_report(report: Report, console: Console) -> None:
    """The same in the terminal."""
    for grid in _grids(report):
        table = Table(*grid.columns, title=grid.title)
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
    for found in report.gates.values():
        for line in found:
            console.print(f"violation: {line}", markup=False)
    console.print(NO_TIME)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.md`` and ``report.json``; each is whole or not there.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"report.md": as_markdown(report), "report.json": json.dumps(dataclasses.asdict(report) | {"note": NO_TIME}, indent=1) + "\n"}
    for name, text in texts.items():
        beside = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / name)
    return [folder / name for name in texts]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _grids(report: Report) -> list[_Grid]:
    return [_gates(report.gates), _compiled(report.compiled), _traffic(report.traffic), _waste(report.waste)]


def _gates(gates: Mapping[str, Sequence[str]]) -> _Grid:
    return _Grid("Gates", ["gate", "result"], [[name, f"{len(found)} violations" if found else "holds"] for name, found in gates.items()])


def _compiled(found: Sequence[Compiled]) -> _Grid:
    columns = ["kernel", "tile", "warps", "stages", "form", "from rows/expert", "target", "registers", "spill B st/ld", "shared KiB"]
    columns += ["tensor columns", "threads", "programs/SM", "wgmma", "tcgen05", "mma.sync", "mfma", "cp.async", "TMA ld/st", "setmaxnreg"]
    columns += ["STL/LDL", "remark"]
    varying = _varying(found)
    rows = []
    for row in found:
        count = {name: str(value) for name, value in row.counts.items()}
        head = [f"{row.operation}/{row.name}", "x".join(map(str, row.block)) or "-", str(row.num_warps), str(row.num_stages)]
        head += [" ".join(f"{name}={row.constants[name]}" for name in varying[row.operation, row.name]) or "-"]
        head += [str(row.rows_per_expert or "-"), row.target]
        if row.error:
            rows.append([*head, *[""] * (len(columns) - len(head) - 1), row.error])
            continue
        figures = [str(row.registers), f"{row.spill_stores}/{row.spill_loads}", f"{row.shared / 1024:.0f}", str(row.tensor_columns or "-")]
        figures += [str(row.threads), str(row.programs) if row.programs >= 0 else "-"]
        figures += [count.get(name, "-") for name in ("wgmma", "tcgen05", "mma_sync", "mfma", "cp_async")]
        figures += ["/".join(count.get(name, "-") for name in pair) for pair in (("tma_load", "tma_store"),)]
        figures += [count.get("setmaxnreg", "-"), f"{count.get('local_stores', '-')}/{count.get('local_loads', '-')}"]
        remarks = [f"ptxas serialised wgmma: {row.serialised}"] if row.serialised else []
        remarks += ["cannot be launched"] if row.programs == 0 else []
        rows.append([*head, *figures, "; ".join(remarks)])
    return _Grid("Kernels", columns, rows)


def _varying(found: Sequence[Compiled]) -> dict[tuple[str, str], list[str]]:
    """The constants that tell the forms of each kernel apart, those of the tile left out: they have columns of their own."""
    by_kernel: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in found:
        by_kernel.setdefault((row.operation, row.name), []).append(row.constants)
    return {
        kernel: [name for name in all_of[0] if not name.startswith("BLOCK") and len({constants.get(name) for constants in all_of}) > 1]
        for kernel, all_of in by_kernel.items()
    }


def _traffic(rows: Sequence[TrafficRow]) -> _Grid:
    columns = ["tokens", "weights", "operation", "GFLOP", "minimum MiB", "moved MiB", "moved/minimum", "issued MiB", "FLOP per byte"]
    cells = []
    for row in rows:
        figures: list[Any] = [f"{row.flops / 1e9:.1f}", f"{row.minimum / _MIB:.2f}", f"{row.moved / _MIB:.2f}"]
        figures += [f"{row.moved / row.minimum:.3f}", f"{row.issued / _MIB:.0f}" if row.issued else "-", f"{row.flops / row.minimum:.0f}"]
        cells.append([str(row.tokens), row.weights, row.operation, *figures])
    return _Grid("Bytes moved, by formula (hidden 4096, width 2048, 128 experts top-4, LoRA rank 16)", columns, cells)


def _waste(rows: Sequence[Waste]) -> _Grid:
    skews = sorted({row.skew for row in rows}, reverse=True)
    by_size: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in rows:
        by_size.setdefault((row.kernel, row.tokens, row.block_rows), {})[row.skew] = f"{row.ratio:.3f} ({row.worst:.3f})"
    cells = [[kernel, str(tokens), str(block), *(found[skew] for skew in skews)] for (kernel, tokens, block), found in by_size.items()]
    return _Grid(
        "Rows of the tiles / rows with work, simulated: mean (worst) of 20 routings", ["kernel", "tokens", "tile rows", *skews], cells
    )
