"""The listed forms fit the kernels' parameters, and exact products stay exact on every target."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from support.mutations import plant

from ms4_kernels.latent_attention import attend_kernel
from ms4_kernels.latent_attention.specimens import specimens
from ms4_kernels.report.compiler import compile_specimen

TENSOR_CORES = ("wgmma", "tcgen05", "mma_sync")


def test_every_parameter_is_given_once():
    for specimen in specimens():
        assert sorted([*specimen.arguments, *specimen.constants]) == sorted(specimen.kernel.arg_names)
    assert len({specimen.name for specimen in specimens()}) == len(specimens())
    assert {specimen.kernel.__name__ for specimen in specimens() if specimen.representative} == {
        "attend_kernel",
        "combine_splits_kernel",
        "write_kernel",
    }


def exact():
    return next(specimen for specimen in specimens() if specimen.name == "attend fp32 fp8 cache")


def test_exact_products_are_not_made_in_tf32():
    """Triton 3.7 turns an exact fp32 product of 64 rows or more into a TF32 one on sm_100."""
    found = compile_specimen(exact(), "sm_100")
    assert not found.error
    assert not any(found.counts.get(kind) for kind in TENSOR_CORES)


def test_control_as_half_precision_is_multiplied_it_would_be(monkeypatch, tmp_path):
    """If this fails, the compiler was mended, and the kernel's second form of the product can go."""
    rebuilt = plant(monkeypatch, tmp_path, attend_kernel, "if IS_EXACT:", "if not IS_EXACT:")
    found = compile_specimen(dataclasses.replace(exact(), kernel=rebuilt.attend_kernel), "sm_100")
    assert not found.error
    assert found.counts.get("tcgen05")
