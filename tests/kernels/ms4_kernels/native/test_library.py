"""The compiled product against fp64, at every remainder of its tiles; loading, refusing, and doing without."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from ms4_kernels.native import library, why_not
from ms4_kernels.native.library import lanes, product

loaded = library()
needs_library = pytest.mark.skipif(loaded is None, reason=why_not() or "no library")


@needs_library
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 13])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 33, 64, 65, 143])
@pytest.mark.parametrize("depth", [0, 1, 3, 256, 257, 600])
def test_product_equals_fp64(rows, columns, depth):
    left_mk, right_kn = torch.randn(rows, depth), torch.randn(depth, columns)
    before_mn = torch.randn(rows, columns)
    exact_mn = left_mk.double() @ right_kn.double()
    bound_mn = (left_mk.double().abs() @ right_kn.double().abs()) * (depth + 2) * 2**-24 + 1e-30  # depth roundings of partial sums
    for adds in (False, True):
        out_mn = before_mn.clone()
        product(loaded, left_mk, right_kn, out_mn, alpha=0.5, adds=adds)
        expected_mn = 0.5 * exact_mn + (before_mn.double() if adds else 0)
        assert ((out_mn - expected_mn).abs() <= bound_mn + 2**-23 * expected_mn.abs()).all()


@needs_library
def test_strides_and_what_lies_around():
    left_km, right = torch.randn(40, 11), torch.randn(40, 90)
    out = torch.full((13, 100), 7.0)
    product(loaded, left_km.t(), right[:, 3:80], out[1:12, 5:82])
    torch.testing.assert_close(out[1:12, 5:82], left_km.t() @ right[:, 3:80], rtol=1e-5, atol=1e-5)  # fp32, sums of 40
    out[1:12, 5:82] = 7.0
    assert bool((out == 7.0).all())  # nothing beside the view was written


@needs_library
def test_an_element_does_not_depend_on_its_tile():
    left_mk, right_kn = torch.randn(20, 300), torch.randn(300, 150)
    whole_mn, part = torch.empty(20, 150), torch.empty(3, 7)
    product(loaded, left_mk, right_kn, whole_mn)
    product(loaded, left_mk[11:14], right_kn[:, 130:137].contiguous(), part)
    assert torch.equal(part, whole_mn[11:14, 130:137])


@needs_library
def test_nan_and_infinity_pass_through():
    left_mk, right_kn = torch.ones(2, 3), torch.ones(3, 20)
    right_kn[1, 4], right_kn[2, 19] = torch.nan, torch.inf
    out_mn = torch.empty(2, 20)
    product(loaded, left_mk, right_kn, out_mn)
    assert bool(out_mn[:, 4].isnan().all())
    assert bool((out_mn[:, 19] == torch.inf).all())
    assert lanes(loaded) in (4, 8, 16)


def test_switched_off_or_without_compiler_there_is_none_and_a_reason():
    code = "from ms4_kernels.native import library, why_not; print(library(), '|', why_not())"
    for change, reason in (({"MS4_NATIVE": "0"}, "MS4_NATIVE=0"), ({"CC": "no-such-compiler"}, "no-such-compiler not found")):
        environment = {**os.environ, **change, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment)
        assert result.stdout.strip().startswith("None |")
        assert reason in result.stdout


@needs_library
def test_a_library_that_computes_wrongly_is_refused(monkeypatch, caplog):
    from ms4_kernels.native.library import _load

    def wrong(loaded, left_mk, right_kn, out_mn, **options):
        out_mn.zero_()

    monkeypatch.setattr(sys.modules[_load.__module__], "product", wrong)
    _load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="ms4_kernels"):
            assert library() is None
        assert "wrong on a test matrix" in caplog.text
    finally:
        _load.cache_clear()
