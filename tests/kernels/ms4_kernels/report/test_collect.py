"""Every operation with kernels lists its forms, each of which is there once."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("triton")

from support.report_samples import product, sample

import ms4_kernels
from ms4_kernels.report import collect


@pytest.fixture
def operation(monkeypatch):
    """Makes a list of specimens the only operation."""

    def install(*listed):
        module = types.ModuleType("sample_specimens")
        module.__dict__["specimens"] = lambda: list(listed)
        monkeypatch.setitem(sys.modules, "sample_specimens", module)
        monkeypatch.setattr(collect, "OPERATIONS", ("sample_specimens",))
        collect.all_specimens.cache_clear()

    yield install
    collect.all_specimens.cache_clear()


def test_every_operation_is_there():
    found = collect.all_specimens()
    assert {specimen.operation for specimen in found} == {"moe", "routing", "cross_entropy", "latent_attention", "invariant"}
    assert any(specimen.representative for specimen in found)


def test_every_module_of_specimens_is_collected():
    """A new operation that lists specimens but is not named in OPERATIONS would escape all gates."""
    root = Path(ms4_kernels.__path__[0])
    modules = {".".join(("ms4_kernels", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("specimens.py")}
    assert modules == set(collect.OPERATIONS)


def test_one_form_for_several_sizes_is_compiled_once(operation):
    late = sample(product, rows_per_expert=256, representative=True)
    early = dataclasses.replace(late, rows_per_expert=48, representative=False)
    other = sample(product, 64, 64)
    operation(late, early, other)
    assert [(one.block, one.rows_per_expert, one.representative) for one in collect.all_specimens()] == [
        ((128, 128), 48, True),
        ((64, 64), 256, True),
    ]


def test_what_claims_something_else_is_kept_apart(operation):
    operation(sample(product), sample(product, warp_specialised=True), sample(product, stages=4))
    assert len(collect.all_specimens()) == 3


def test_an_operation_without_specimens_is_refused(operation):
    operation()
    with pytest.raises(ValueError, match="lists no specimen"):
        collect.all_specimens()


def test_a_missing_operation_is_refused(operation, monkeypatch):
    operation(sample(product))
    monkeypatch.setattr(collect, "OPERATIONS", ("ms4_kernels.nowhere.specimens",))
    with pytest.raises(ImportError):
        collect.all_specimens()
