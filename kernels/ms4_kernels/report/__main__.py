"""Compile every shipped kernel ahead of time, count what it moves and pads, hold it to the gates, and write the tables.

Exercise it: ``python -m ms4_kernels.report --out benchmarks/results/kernels``. Ends with status 1 if a gate is broken.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
from pathlib import Path

import triton
from rich.console import Console
from triton import knobs

from ms4_kernels.report import gates
from ms4_kernels.report.compiler import TARGETS, compile_all
from ms4_kernels.report.release import GEMMS, choosers, moved_and_minimum, traffic_rows
from ms4_kernels.report.tables import Report, print_report, write_report
from ms4_kernels.report.waste import simulate


def main(arguments: list[str] | None = None) -> int:
    """Make the report; 0 if all gates hold."""
    parser = argparse.ArgumentParser(prog="python -m ms4_kernels.report", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and report.json")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="default: all")
    parser.add_argument("--processes", type=int, default=1, help="compilers at once (default %(default)s)")
    parser.add_argument("--representative", action="store_true", help="only the forms that `make test` compiles")
    options = parser.parse_args(arguments)
    compiled = compile_all(options.targets, processes=options.processes, representative=options.representative)
    waste = simulate(choosers())
    moved = traffic_rows()
    report = Report(
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "ms4_kernels.report", *(sys.argv[1:] if arguments is None else arguments)]),
        versions={
            "Python": platform.python_version(),
            "triton": triton.__version__,
            "ptxas for sm_90": str(knobs.nvidia.ptxas.version),
            "ptxas for sm_100": str(knobs.nvidia.ptxas_blackwell.version),
        },
        compiled=compiled,
        traffic=moved,
        waste=waste,
        gates={
            "compiles and can be launched": gates.compiles(compiled),
            "no spills": gates.no_spills(compiled),
            "tensor cores in every product": gates.tensor_cores(compiled),
            "setmaxnreg where warp specialisation is claimed": gates.warp_specialisation(compiled),
            "a tile of 128x128 or larger at 256 rows per expert": gates.large_tiles(compiled, GEMMS),
            "padding at most 1.15 from 16k tokens": gates.padding(waste),
            "bytes moved at most 1.1 times the minimum": gates.traffic(*moved_and_minimum(moved)),
        },
    )
    print_report(report, Console(width=260))
    for path in write_report(report, options.out):
        print(path)
    return int(any(report.gates.values()))


if __name__ == "__main__":
    sys.exit(main())
