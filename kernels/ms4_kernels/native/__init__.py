"""Kernels in C for CPUs, compiled on first use; where there is no compiler, plain torch does the same work, slower."""

from ms4_kernels.native.library import library, why_not

__all__ = ["library", "why_not"]
