"""The three products of a linear layer against fp64, by the compiled kernels and by torch."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.native import library, matmul
from ms4_kernels.native.matmul import add_product_tn, product_nn, product_nt


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(matmul, "library", lambda: None)
    elif library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(matmul, "_LEAST", 0)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 1, 1), (97, 65, 33), (300, 130, 70), (5, 64, 600), (0, 3, 4)])
def test_products_equal_fp64(path, rows, outputs, inputs):
    x_ti, weight_oi, dy_to = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    total_oi = torch.randn(outputs, inputs)
    expected_oi = total_oi.double() + dy_to.double().t() @ x_ti.double()
    pairs = [
        (product_nt(x_ti, weight_oi), x_ti.double() @ weight_oi.double().t()),
        (product_nn(dy_to, weight_oi), dy_to.double() @ weight_oi.double()),
        (total_oi, expected_oi),
    ]
    add_product_tn(total_oi, dy_to, x_ti)
    for actual, expected in pairs:
        # fp32: a rounding for each of at most 600 terms of normal size, which add up like a random walk.
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_wider_total(path):
    dy_to, x_ti = torch.randn(50, 8).bfloat16(), torch.randn(50, 9).bfloat16()
    total_oi = torch.zeros(8, 9)
    add_product_tn(total_oi, dy_to, x_ti)
    torch.testing.assert_close(total_oi, (dy_to.float().t() @ x_ti.float()), rtol=1e-2, atol=0.1)  # torch rounds the product to bf16


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_a_row_does_not_depend_on_the_others_nor_on_threads(monkeypatch):
    monkeypatch.setattr(matmul, "_LEAST", 0)
    x_ti, weight_oi = torch.randn(200, 300), torch.randn(150, 300)
    whole_to = product_nt(x_ti, weight_oi)
    assert torch.equal(product_nt(x_ti[70:73].contiguous(), weight_oi), whole_to[70:73])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(product_nt(x_ti, weight_oi), whole_to)
    finally:
        torch.set_num_threads(before)


def test_what_the_kernels_do_not_serve_goes_to_torch(monkeypatch):
    monkeypatch.setattr(matmul, "_LEAST", 0)
    monkeypatch.setattr(matmul, "_run", lambda *arguments, **options: pytest.fail("not for the kernels"))
    x_ti, weight_oi = torch.randn(4, 6), torch.randn(5, 6)
    assert product_nt(x_ti.double(), weight_oi.double()).dtype == torch.float64
    product_nt(x_ti, torch.randn(6, 5).t())
    product_nn(torch.randn(5, 4).t(), weight_oi)
    monkeypatch.setattr(matmul, "_LEAST", 1 << 20)
    product_nt(x_ti, weight_oi)


def test_what_does_not_fit_raises_torchs_error(monkeypatch):
    monkeypatch.setattr(matmul, "_LEAST", 0)
    for product, left, right in ((product_nt, (4, 6), (5, 7)), (product_nn, (4, 5), (6, 7)), (matmul.product_tn, (4, 5), (3, 7))):
        with pytest.raises(RuntimeError):
            product(torch.randn(left), torch.randn(right))
