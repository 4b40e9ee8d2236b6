"""Compiles a specimen for a GPU that is not there, and reads what came out.

Every compilation has a cache of its own that is deleted afterwards, so that what is judged is what the source says now.
Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_compiler.py``.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from rich.progress import track
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ms4_kernels.report.assembly import amd_counts, amd_resources, ptx_counts, ptx_threads, ptxas_resources, sass_counts
from ms4_kernels.report.collect import all_specimens
from ms4_kernels.report.occupancy import programs_per_multiprocessor
from ms4_kernels.specimen import Specimen

__all__ = ["GATED", "TARGETS", "Compiled", "compile_all", "compile_specimen"]

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
GATED = ("sm_90", "sm_100")
"""Targets whose figures are held to; the others are told."""
_AMD_SHARED = 64 * 1024
"""Bytes of shared memory that a program can have on gfx942."""


@dataclass(frozen=True)
class Compiled:
    """A specimen as compiled for one target; every number is a figure of the binary.

    Attributes:
        operation: as the specimen says.
        name: as the specimen says.
        constants: the specimen's, as text.
        num_warps: the specimen's, without those that warp specialisation adds.
        num_stages: the specimen's.
        block: the specimen's output tile.
        rows_per_expert: the specimen's.
        is_gemm: the specimen's.
        warp_specialised: the specimen's.
        target: a key of ``TARGETS``.
        error: why it did not compile; "" if it did.
        registers: of a thread.
        stack: bytes of a thread.
        spill_stores: bytes of a thread.
        spill_loads: bytes of a thread.
        serialised: why ptxas serialised the asynchronous products of Hopper; "" where it did not.
        shared: bytes of a program.
        tensor_columns: columns of tensor memory of a program.
        threads: of a program.
        programs: that fit a multiprocessor at once; 0 if it cannot be launched, -1 where their number is not known.
        counts: instructions in the text by kind.
        cpu_seconds: that the compilation took here, ptxas left out. No time of a kernel.
    """

    operation: str
    name: str
    constants: Mapping[str, str]
    num_warps: int
    num_stages: int
    block: tuple[int, ...]
    rows_per_expert: int
    is_gemm: bool
    warp_specialised: bool
    target: str
    error: str = ""
    registers: int = -1
    stack: int = -1
    spill_stores: int = -1
    spill_loads: int = -1
    serialised: str = ""
    shared: int = -1
    tensor_columns: int = 0
    threads: int = -1
    programs: int = -1
    counts: Mapping[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def title(self) -> str:
        """The kernel, its tile, warps, stages and target, for messages and tables."""
        tile = "x".join(map(str, self.block)) or "-"
        return f"{self.operation}/{self.name} {tile} warps {self.num_warps} stages {self.num_stages} {self.target}"


def compile_specimen(specimen: Specimen, target: str, *, sass: bool = False) -> Compiled:
    """Compile for one target. A specimen that does not compile comes back with ``error`` set, for the report and the gates to show.

    Args:
        specimen: what to compile.
        target: a key of ``TARGETS``.
        sass: whether to disassemble the binary too and count accesses to local memory.

    Raises:
        ValueError: the specimen does not fit its kernel's arguments, or the compiler's output lacks a figure.
    """
    source = _source(specimen)
    told = {
        "operation": specimen.operation,
        "name": specimen.name,
        "constants": {name: str(value) for name, value in specimen.constants.items()},
        "num_warps": specimen.num_warps,
        "num_stages": specimen.num_stages,
        "block": tuple(specimen.block),
        "rows_per_expert": specimen.rows_per_expert,
        "is_gemm": specimen.is_gemm,
        "warp_specialised": specimen.warp_specialised,
        "target": target,
    }
    is_amd = TARGETS[target].backend == "hip"
    options = {**specimen.options, "num_warps": specimen.num_warps, "num_stages": specimen.num_stages}
    log = io.StringIO()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        try:
            kernel: Any = triton.compile(source, target=TARGETS[target], options=options)
        except Exception as error:  # the compiler raises types of its own, and RuntimeError, for whatever it cannot do
            return Compiled(**told, error=_told(error))
    seconds = time.process_time() - start
    found = _amd(kernel) if is_amd else _nvidia(kernel, log.getvalue(), sass)
    return Compiled(**told, **found, cpu_seconds=seconds)


def compile_all(targets: Sequence[str], *, processes: int = 1, sass: bool = True, representative: bool = False) -> list[Compiled]:
    """Compile the shipped specimens for every target, in the order of the specimens.

    Args:
        targets: keys of ``TARGETS``.
        processes: started anew, so that a compiler that crashes takes a process with it and not the report's.
        sass: as for ``compile_specimen``.
        representative: only those that are.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a compiler crashed.
    """
    chosen = [number for number, specimen in enumerate(all_specimens()) if specimen.representative or not representative]
    jobs = [(number, target, sass) for number in chosen for target in targets]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        bar = {"total": len(jobs), "console": Console(stderr=True), "disable": not sys.stderr.isatty()}
        return list(track(pool.map(_compile_number, jobs), "compiling", **bar))


def _compile_number(job: tuple[int, str, bool]) -> Compiled:
    """By number, because a ``triton.jit`` function cannot be sent to another process."""
    number, target, sass = job
    return compile_specimen(all_specimens()[number], target, sass=sass)


def _source(specimen: Specimen) -> ASTSource:
    """The kernel with types for its arguments, as the launcher would derive them from tensors."""
    kernel = specimen.kernel
    if not isinstance(kernel, JITFunction):
        what = f"{specimen.operation}/{specimen.name} is {type(kernel).__name__}"
        raise ValueError(f"{what}, not a compiled function; is TRITON_INTERPRET set?")
    given = [*specimen.arguments, *specimen.constants]
    if sorted(given) != sorted(kernel.arg_names):
        wrong = sorted(set(given) ^ set(kernel.arg_names)) or "one of them twice"
        raise ValueError(f"{specimen.operation}/{specimen.name}: arguments and constants do not cover the kernel's: {wrong}")
    signature, attributes, constants = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in specimen.constants:
            signature[name] = "constexpr"
            constants[(position,)] = specimen.constants[name]
            continue
        kind, _, divisor = specimen.arguments[name].partition(":")
        signature[name] = kind
        if divisor == "16":
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif divisor:
            raise ValueError(f"{specimen.operation}/{specimen.name}: {name} has {specimen.arguments[name]!r}; only ':16' is known")
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def _nvidia(kernel: Any, log: str, sass: bool) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    resources = ptxas_resources(log)
    threads, columns = ptx_threads(ptx), getattr(kernel.metadata, "tmem_size", None) or 0
    counts = ptx_counts(ptx)
    if sass:
        counts |= sass_counts(_disassembled(kernel.asm["cubin"]))
    return {
        **vars(resources),
        "shared": kernel.metadata.shared,
        "tensor_columns": columns,
        "threads": threads,
        "programs": programs_per_multiprocessor(resources.registers, threads, kernel.metadata.shared, columns),
        "counts": counts,
    }


def _amd(kernel: Any) -> dict[str, Any]:
    assembly = kernel.asm["amdgcn"]
    return {
        **vars(amd_resources(assembly)),
        "shared": kernel.metadata.shared,
        "threads": kernel.metadata.num_warps * TARGETS["gfx942"].warp_size,
        "programs": -1 if kernel.metadata.shared <= _AMD_SHARED else 0,
        "counts": amd_counts(assembly),
    }


def _disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def _told(error: BaseException) -> str:
    """The end of the innermost message, which says what went wrong; the outer ones say in which call."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip(" ^~")]
    return f"{type(error).__name__}: {lines[-1].strip()[:300] if lines else ''}"
