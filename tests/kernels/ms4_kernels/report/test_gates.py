"""Every gate is shut by a kernel, a chooser or a count that is known to be bad, and open for one that is known to be good."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

pytest.importorskip("triton")

from support.report_samples import pair, product, sample, scalar_product, specialised

from ms4_kernels.report import gates
from ms4_kernels.report.compiler import GATED, Compiled, compile_specimen
from ms4_kernels.report.waste import simulate


@cache
def compiled(kernel, rows=128, columns=128, warps=8, stages=3, claims=False) -> list[Compiled]:
    specimen = sample(kernel, rows, columns, warps=warps, stages=stages, warp_specialised=claims)
    return [compile_specimen(specimen, target) for target in GATED]


def test_a_good_kernel_passes_every_gate():
    found = compiled(product)
    assert gates.compiles(found) == gates.no_spills(found) == gates.tensor_cores(found) == []
    assert gates.warp_specialisation(found) == gates.large_tiles(found, ["product"]) == []


def test_control_two_accumulators_of_128_by_128_in_4_warps_spill():
    found = gates.no_spills(compiled(pair, warps=4))
    assert len(found) == 2, found
    assert "spills" in found[0]
    assert compiled(pair, warps=4)[0].counts["wgmma"] > 0
    assert gates.no_spills(compiled(pair, columns=64)) == []


def test_control_a_product_by_hand_uses_no_tensor_cores():
    found = gates.tensor_cores(compiled(scalar_product, 32, 32, warps=4))
    assert [line.split(": ")[1] for line in found] == ["no wgmma, but 0 mma.sync", "no tcgen05, but 0 mma.sync"]


def test_control_16_rows_miss_hoppers_asynchronous_product():
    found = gates.tensor_cores(compiled(product, 16, 64, warps=4))
    assert "no wgmma" in found[0]


def test_control_warp_specialisation_that_the_compiler_drops_on_hopper():
    """8 warps ask for it and get it on sm_100 only; triton 3.7.1 says nothing. 4 warps on a tile of 64 rows get it on both."""
    found = gates.warp_specialisation(compiled(specialised, claims=True))
    assert len(found) == 1
    assert "sm_90" in found[0]
    assert gates.warp_specialisation(compiled(specialised, 64, 128, warps=4, claims=True)) == []
    assert gates.warp_specialisation(compiled(specialised)) == []


def test_control_a_kernel_that_does_not_compile_passes_no_gate():
    found = compiled(product, 128, 48)
    assert len(gates.compiles(found)) == len(gates.no_spills(found)) == len(gates.tensor_cores(found)) == 2


def test_control_too_much_shared_memory():
    """8 stages of 32 KiB are more than the 227 KiB that a program can have; the compiler does not mind."""
    found = gates.compiles(compiled(product, stages=8))
    assert len(found) == 2, compiled(product, stages=8)
    assert "cannot be launched" in found[0]


def test_control_large_tiles():
    large, small = compiled(product), compiled(product, 128, 64, warps=4)
    assert gates.large_tiles(small, ["product"]) == ["product: no tile of 128x128 or larger for 256 rows per expert"]
    assert gates.large_tiles([*small, *large], ["product"]) == []
    late = [dataclasses.replace(row, rows_per_expert=512) for row in large]
    assert len(gates.large_tiles(late, ["product"])) == 1
    assert gates.large_tiles(large, ["product", "other"]) == ["other: no tile of 128x128 or larger for 256 rows per expert"]


def test_control_a_chooser_of_tall_tiles_only():
    """With 512 tokens or fewer per expert, tiles of 256 rows carry half a tile of padding each: a quarter and more of the work."""
    tall = gates.padding(simulate({"tall": lambda rows: 256}))
    assert any("16384 tokens" in line for line in tall)
    always_128 = {"128 rows": lambda rows: 128}
    assert gates.padding(simulate(always_128), from_tokens=512), "and 128 rows do too at the small sizes"
    assert gates.padding(simulate(always_128)) == []


def test_control_traffic():
    assert gates.traffic({"up": 109.0}, {"up": 100.0}) == []
    assert gates.traffic({"up": 111.0}, {"up": 100.0}) == ["up: 111 bytes are 1.110 times the minimum of 100"]
    for counted, minimum in (({}, {}), ({"up": 1.0}, {}), ({}, {"up": 1.0})):
        with pytest.raises(ValueError, match="expected"):
            gates.traffic(counted, minimum)
