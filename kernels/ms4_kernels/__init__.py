"""Operations of Mistral Small 4 that deserve a kernel, usable without the rest: importing this package imports torch and numpy at most.

One folder per operation, each with a readable reference and the fast paths that must agree with it. ``register()`` makes the experts
operation known to transformers, which is imported only then. Exercise it: ``pytest tests/kernels``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_kernels.transformers_experts import register

__all__ = ["register"]


def __getattr__(name: str) -> Any:
    if name == "register":
        from ms4_kernels.transformers_experts import register

        return register
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
