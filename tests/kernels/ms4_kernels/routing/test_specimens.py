"""The routing kernels compiled ahead of time: every kernel is listed, and none spills or uses atomics."""

from __future__ import annotations

import dataclasses

import pytest
from triton.runtime.jit import JITFunction

from ms4_kernels.report.compiler import compile_specimen
from ms4_kernels.routing import router_triton, sort_triton, tile_triton
from ms4_kernels.routing.specimens import specimens

SPECIMENS = {specimen.name: specimen for specimen in specimens()}
REPRESENTATIVE = [name for name, specimen in SPECIMENS.items() if specimen.representative]


def test_every_kernel_has_a_representative_and_every_form_a_name():
    kernels = {
        value
        for module in (router_triton, sort_triton, tile_triton)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    assert {SPECIMENS[name].kernel for name in REPRESENTATIVE} == kernels
    assert len(SPECIMENS) == len(specimens())


def _faults(name: str, target: str) -> list[str]:
    compiled = compile_specimen(SPECIMENS[name], target)
    figures = {"spill stores": compiled.spill_stores, "spill loads": compiled.spill_loads, "atomics": compiled.counts.get("atomics", -1)}
    return [compiled.error] * bool(compiled.error) + [f"{value} {what}" for what, value in figures.items() if value]


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_no_spills_and_no_atomics(name):
    assert _faults(name, "sm_90") == []


def test_too_few_warps_are_seen_to_spill():
    """The negative control: 128 tiles of 128 experts do not fit the 255 registers of 32 threads."""
    specimen = SPECIMENS["tiles of 128 segments"]
    large = dataclasses.replace(specimen, constants={**specimen.constants, "BLOCK_M": 128}, num_warps=1)
    assert compile_specimen(large, "sm_90").spill_stores > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize("name", SPECIMENS)
def test_no_form_spills_or_uses_atomics(name, target):
    assert _faults(name, target) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIMENS)
def test_every_form_compiles_for_amd(name):
    """Spills are not held to there: masks lie in scalar registers, of which there are few."""
    compiled = compile_specimen(SPECIMENS[name], "gfx942")
    assert (compiled.error, compiled.counts.get("atomics")) == ("", 0)
