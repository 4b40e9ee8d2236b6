"""Operations of Mistral Small 4 that deserve a kernel, usable without the rest: this package imports torch and numpy, and nothing else.

One folder per operation, each with a readable reference and the fast paths that must agree with it.
Exercise it: ``pytest tests/kernels``.
"""
