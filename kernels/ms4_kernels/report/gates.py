"""What every shipped kernel is held to. Each gate returns one line per violation; none means that it holds.

Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_gates.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ms4_kernels.report.compiler import GATED, Compiled
from ms4_kernels.report.waste import Waste

__all__ = ["compiles", "large_tiles", "no_spills", "padding", "tensor_cores", "traffic", "warp_specialisation"]

_TENSOR_CORE = {"sm_90": "wgmma", "sm_100": "tcgen05"}


def compiles(found: Iterable[Compiled]) -> list[str]:
    """It compiles for the gated targets, and one program fits a multiprocessor."""
    lines = []
    for row in found:
        if row.target in GATED and row.error:
            lines.append(f"{row.title}: {row.error}")
        elif row.target in GATED and row.programs < 1:
            lines.append(f"{row.title}: cannot be launched, it needs {row.shared} bytes of shared memory, {row.registers} registers")
    return lines


def no_spills(found: Iterable[Compiled]) -> list[str]:
    """No register goes to memory. What did not compile counts as a violation: it shows nothing."""
    return [
        f"{row.title}: spills {row.spill_stores} bytes, loads {row.spill_loads} back; {row.error or f'{row.registers} registers'}"
        for row in found
        if row.target in GATED and (row.spill_stores, row.spill_loads) != (0, 0)
    ]


def tensor_cores(found: Iterable[Compiled]) -> list[str]:
    """Products use the asynchronous tensor-core instructions of their target: wgmma on sm_90, tcgen05 on sm_100."""
    lines = []
    for row in found:
        if row.is_gemm and row.target in GATED:
            wanted = _TENSOR_CORE[row.target]
            if not row.counts.get(wanted):
                lines.append(f"{row.title}: no {wanted}, but {row.counts.get('mma_sync', 0)} mma.sync")
    return lines


def warp_specialisation(found: Iterable[Compiled]) -> list[str]:
    """What claims producer and consumer warps hands registers between them; the compiler can drop the wish without a word."""
    return [
        f"{row.title}: claims warp specialisation and has no setmaxnreg"
        for row in found
        if row.warp_specialised and row.target in GATED and not row.counts.get("setmaxnreg")
    ]


def large_tiles(found: Sequence[Compiled], names: Sequence[str], *, rows_per_expert: int = 256, least: int = 128) -> list[str]:
    """Each form of the named kernels has a tile of 128 x 128 or more that the launcher can pick at 256 rows per expert.

    Args:
        found: compiled forms.
        names: kernels that are held to it, those whose products carry the work; the names of their forms begin so. One without any form is
            a violation.
        rows_per_expert: at which it must be at hand.
        least: rows, and columns, of the tile.
    """
    forms = {row.name for row in found if row.name.split()[0] in names}
    missing = sorted(forms | (set(names) - {form.split()[0] for form in forms}))
    for row in found:
        is_large = row.is_gemm and len(row.block) == 2 and min(row.block) >= least
        if is_large and 0 < row.rows_per_expert <= rows_per_expert and row.name in missing:
            missing.remove(row.name)
    return [f"{name}: no tile of {least}x{least} or larger for {rows_per_expert} rows per expert" for name in missing]


def padding(found: Iterable[Waste], *, limit: float = 1.15, from_tokens: int = 16384) -> list[str]:
    """From so many tokens the tiles have at most ``limit`` times the rows that carry work."""
    return [
        f"{row.kernel} at {row.tokens} tokens, {row.skew}: tiles of {row.block_rows} rows, {row.ratio:.3f} times the rows"
        for row in found
        if row.tokens >= from_tokens and row.ratio > limit
    ]


def traffic(counted: Mapping[str, float], minimum: Mapping[str, float], *, limit: float = 1.1) -> list[str]:
    """Each operation's counted bytes are at most ``limit`` times its compulsory minimum.

    Args:
        counted: operation -> bytes, each counted once a launch.
        minimum: operation -> bytes.
        limit: the factor.

    Raises:
        ValueError: an operation is in one of them only; a gate on nothing would hold.
    """
    if not counted or counted.keys() != minimum.keys():
        raise ValueError(f"counted {sorted(counted)}, expected {sorted(minimum)}")
    return [
        f"{name}: {counted[name]:.0f} bytes are {counted[name] / least:.3f} times the minimum of {least:.0f}"
        for name, least in minimum.items()
        if counted[name] > limit * least
    ]
