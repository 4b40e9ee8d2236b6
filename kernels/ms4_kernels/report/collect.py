"""The shipped compiled forms of every operation that has Triton kernels.

Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_collect.py``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from functools import cache

from ms4_kernels.specimen import Specimen

__all__ = ["OPERATIONS", "all_specimens"]

OPERATIONS = tuple(f"ms4_kernels.{room}.specimens" for room in ("moe.triton", "routing", "cross_entropy", "latent_attention", "invariant"))
"""Modules with a function ``specimens() -> list[Specimen]``."""


@cache
def all_specimens() -> Sequence[Specimen]:
    """Those of all operations, in a fixed order.

    A form that is listed for several numbers of rows per expert is there once, with the least of them, and is representative if one of
    them is: it compiles to the same binary.

    Raises:
        ImportError: Triton or an operation is missing.
        ValueError: an operation lists none.
    """
    found: dict[str, Specimen] = {}
    for module in OPERATIONS:
        listed = importlib.import_module(module).specimens()
        if not listed:
            raise ValueError(f"{module} lists no specimen")
        for specimen in listed:
            key = _form(specimen)
            earlier: Specimen = found.get(key) or specimen
            found[key] = dataclasses.replace(
                earlier,
                rows_per_expert=min(earlier.rows_per_expert, specimen.rows_per_expert),
                representative=earlier.representative or specimen.representative,
            )
    return tuple(found.values())


def _form(specimen: Specimen) -> str:
    """All that decides what a specimen compiles to, and what it claims."""
    parts = {**vars(specimen), "kernel": id(specimen.kernel), "rows_per_expert": 0, "representative": False}
    for name in ("arguments", "constants", "options"):
        parts[name] = sorted(parts[name].items(), key=lambda item: item[0])
    return repr(sorted(parts.items()))
