"""The shipped kernels pass every gate: a representative part here, all of them in the slow test. ``test_gates.py`` shuts each gate."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from ms4_kernels.report import gates
from ms4_kernels.report.collect import all_specimens
from ms4_kernels.report.compiler import GATED, Compiled, compile_all, compile_specimen
from ms4_kernels.report.release import GEMMS, choosers
from ms4_kernels.report.waste import simulate


@pytest.fixture(scope="module")
def representative() -> list[Compiled]:
    chosen = [specimen for specimen in all_specimens() if specimen.representative]
    return [compile_specimen(specimen, target) for specimen in chosen for target in GATED]


def broken(found: list[Compiled]) -> list[str]:
    lines = [*gates.compiles(found), *gates.no_spills(found), *gates.tensor_cores(found), *gates.warp_specialisation(found)]
    return [*lines, *gates.large_tiles(found, GEMMS)]


def test_representative_kernels(representative):
    assert broken(representative) == []


def test_the_representative_part_has_all_kernels(representative):
    """Every triton.jit function that is shipped, and every kind of weights, is compiled in each target."""
    chosen = [specimen for specimen in all_specimens() if specimen.representative]
    assert {specimen.kernel.__name__ for specimen in chosen} == {specimen.kernel.__name__ for specimen in all_specimens()}
    assert {specimen.constants.get("KIND") for specimen in chosen} >= {"dense", "fp8", "nvfp4"}
    assert len(representative) == 2 * len(chosen)
    assert {row.name.split()[0] for row in representative} >= set(GEMMS)


def test_padding_of_the_launchers_tiles():
    assert gates.padding(simulate(choosers())) == []


@pytest.mark.slow
def test_all_kernels():
    """Minutes: hundreds of forms. In processes of their own, as ``make kernels-report`` compiles them."""
    found = compile_all(GATED, sass=False)
    assert len(found) == 2 * len(all_specimens())
    assert broken(found) == []
