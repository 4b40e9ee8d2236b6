"""What can be read from compiled code: instructions in PTX and SASS, resources in the log of ptxas and in AMD assembly.

Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_assembly.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Resources", "amd_counts", "amd_resources", "ptx_counts", "ptx_threads", "ptxas_resources", "sass_counts"]

_PTX = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma_sync": r"\bmma\.sync",
    "cp_async": r"\bcp\.async\.c[ag]\.",
    "tma_load": r"\bcp\.async\.bulk\.tensor\.[1-5]d\.(?:\w+::\w+\.)*shared::\w+\.global",
    "tma_store": r"\bcp\.async\.bulk\.tensor\.[1-5]d\.(?:\w+::\w+\.)*global\.shared::\w+",
    "setmaxnreg": r"\bsetmaxnreg",
    "atomics": r"\b(?:red|atom)\.(?:\w+\.)*global",
}
_SASS = {"local_stores": r"\bSTL\b", "local_loads": r"\bLDL\b"}
_SERIALISED = r"wgmma\.mma_async instructions are serialized due to (.*?)(?: in (?:the )?function.*)?$"
_AMD = {"mfma": r"\bv_mfma", "atomics": r"_atomic_"}


@dataclass(frozen=True)
class Resources:
    """What one thread or program of a compiled kernel takes.

    Attributes:
        registers: 32-bit registers of a thread; on AMD vector and accumulation registers.
        stack: bytes of a thread's frame in local memory.
        spill_stores: bytes of a thread's registers stored to local memory; on AMD, where only the number of spilt registers is known,
            4 bytes each.
        spill_loads: bytes loaded back.
        serialised: why ptxas put the asynchronous products of Hopper one after the other, which defeats the pipeline; "" where it did not.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    serialised: str = ""


def ptx_counts(ptx: str) -> dict[str, int]:
    """Number of instructions of each kind that stand in the text; loops are not multiplied out."""
    return {name: len(re.findall(pattern, ptx)) for name, pattern in _PTX.items()}


def sass_counts(sass: str) -> dict[str, int]:
    """Stores to and loads from local memory, which are spills or arrays that are indexed at run time."""
    return {name: len(re.findall(pattern, sass)) for name, pattern in _SASS.items()}


def amd_counts(assembly: str) -> dict[str, int]:
    """Matrix instructions and atomics of AMD assembly."""
    return {name: len(re.findall(pattern, assembly)) for name, pattern in _AMD.items()}


def ptx_threads(ptx: str) -> int:
    """Threads of a program, the warps that warp specialisation adds included.

    Raises:
        ValueError: the kernel does not say.
    """
    return _number(r"\.reqntid\s+(\d+)", ptx, "threads")


def ptxas_resources(log: str) -> Resources:
    """Read the log of ``ptxas -v`` for a file with one kernel.

    Raises:
        ValueError: a figure is missing: not a log of ``-v``, or a ptxas that words it otherwise. Zero is never assumed.
    """
    return Resources(
        _number(r"Used (\d+) registers", log, "registers"),
        _number(r"(\d+) bytes stack frame", log, "stack"),
        _number(r"(\d+) bytes spill stores", log, "spill stores"),
        _number(r"(\d+) bytes spill loads", log, "spill loads"),
        "; ".join(dict.fromkeys(re.findall(_SERIALISED, log, re.MULTILINE))),
    )


def amd_resources(assembly: str) -> Resources:
    """Read the kernel's metadata at the end of AMD assembly.

    Raises:
        ValueError: a figure is missing.
    """
    vector = _number(r"\.vgpr_count:\s+(\d+)", assembly, "vector registers")
    spilt = sum(_number(rf"\.{kind}gpr_spill_count:\s+(\d+)", assembly, "spilt registers") for kind in "vs")
    stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly, "stack")
    return Resources(vector, stack, 4 * spilt, 4 * spilt)


def _number(pattern: str, text: str, what: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output says nothing of {what}")
    return int(found.group(1))
