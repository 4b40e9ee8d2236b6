"""The compiled attention against explicit softmax in fp64: outputs and gradients, documents of every length, strided heads."""

from __future__ import annotations

import ctypes

import pytest
import torch

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.native import _Attention, attention_native, serves
from ms4_kernels.attention.reference import attention_reference
from ms4_kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")

CPU = torch.device("cpu")
SCALE = 0.3


def make_inputs(lengths, heads, key_width, value_width, dtype=torch.float32):
    tokens = sum(lengths)
    widths = (key_width, key_width, value_width)
    return [torch.randn(tokens, heads, width).to(dtype).requires_grad_() for width in widths], PackedDocuments(lengths, CPU)


def outputs_and_grads(function, inputs, documents, causal=True):
    out_thv = function(*inputs, documents, SCALE, causal)
    factors = torch.linspace(-1, 1, out_thv.shape[-1], dtype=out_thv.dtype)
    return [out_thv, *torch.autograd.grad((out_thv * factors).sum(), inputs)]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "heads", "key_width", "value_width"),
    [
        ((1,), 1, 1, 1),
        ((5, 1, 48, 49, 70), 3, 20, 12),  # around the block of 48 queries
        ((97, 16, 15, 17), 2, 64, 64),  # around a vector
        ((33,), 2, 7, 70),
    ],
)
def test_equals_reference(lengths, heads, key_width, value_width, dtype, causal):
    inputs, documents = make_inputs(lengths, heads, key_width, value_width, dtype)
    exact = outputs_and_grads(attention_reference, [x.detach().double().requires_grad_() for x in inputs], documents, causal)
    plain = outputs_and_grads(attention_reference, inputs, documents, causal)
    for ours, torchs, truth in zip(outputs_and_grads(attention_native, inputs, documents, causal), plain, exact, strict=True):
        error, bound = ((x.double() - truth).norm() for x in (ours, torchs))
        # A quarter of a unit of the last place is what rounding the result costs on average; exact sums of one token have no error at all.
        assert error <= 2 * bound + torch.finfo(dtype).eps / 4 * truth.norm() + 1e-12
        assert ours.dtype == dtype


def test_heads_inside_wider_rows_are_read_where_they_lie():
    projected_thx = torch.randn(60, 3, 40)  # keys and values of a head side by side, as the up-projection makes them
    key_thx, value_thv = projected_thx.split((24, 16), dim=-1)
    query_thx, documents = torch.randn(60, 3, 24), PackedDocuments((20, 40), CPU)
    actual = attention_native(query_thx, key_thx, value_thv, documents, SCALE)
    assert torch.equal(actual, attention_native(query_thx, key_thx.contiguous(), value_thv.contiguous(), documents, SCALE))


def test_large_scores_do_not_overflow():
    inputs, documents = make_inputs((60,), 2, 16, 8)
    big = [inputs[0].detach() * 1e3, inputs[1].detach() * 1e3, inputs[2].detach()]
    expected = attention_reference(*(x.double() for x in big), documents, SCALE)
    # Scores reach 1e6, whose fp32 spacing is 0.06: exponentials differ by some percent where two keys nearly tie.
    torch.testing.assert_close(attention_native(*big, documents, SCALE).double(), expected, rtol=0.2, atol=0.2)
    nan = [big[0].clone(), big[1], big[2]]
    nan[0][7, 1, 3] = torch.nan
    out = attention_native(*nan, documents, SCALE)
    assert bool(out[7, 1].isnan().all())
    assert int(out.isnan().sum()) == 8  # and nowhere else


def test_documents_do_not_see_each_other_nor_the_future():
    inputs, documents = make_inputs((50, 60), 2, 16, 8)
    before = attention_native(*inputs, documents, SCALE)
    with torch.no_grad():
        for x in inputs:
            x[49] += 1.0  # the last token of the first document
    after = attention_native(*inputs, documents, SCALE)
    changed = (before != after).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [49]


def test_full_attention_sees_its_whole_document_and_no_other():
    inputs, documents = make_inputs((50, 60, 7), 2, 16, 8)
    before = attention_native(*inputs, documents, SCALE, False)
    with torch.no_grad():
        for x in inputs:
            x[49] += 1.0  # the last token of the first document
    changed = (before != attention_native(*inputs, documents, SCALE, False)).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == list(range(50))


def test_results_do_not_depend_on_threads_or_neighbours():
    inputs, documents = make_inputs((50, 60, 7), 2, 16, 8)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                [*outputs_and_grads(attention_native, inputs, documents), *outputs_and_grads(attention_native, inputs, documents, False)]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    alone = attention_native(*(x[50:110] for x in inputs), PackedDocuments((60,), CPU), SCALE)
    assert torch.equal(alone, results[0][0][50:110])


def test_saves_its_inputs_only():
    inputs, documents = make_inputs((50, 60), 2, 16, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()), lambda x: x):
        attention_native(*inputs, documents, SCALE)
    assert sorted(saved) == sorted(x.data_ptr() for x in inputs)


def test_structure_has_the_size_of_the_compiled_one():
    sizes = (ctypes.c_int64 * 3)()
    library().ms4_sizes(sizes)
    assert sizes[2] == ctypes.sizeof(_Attention)


def test_what_is_served():
    assert serves(torch.zeros(1, 1, 1))
    assert serves(torch.zeros(1, 1, 1, dtype=torch.bfloat16))
    assert not serves(torch.zeros(1, 1, 1, dtype=torch.float64))
    assert not serves(torch.zeros(1, 1, 1, device="meta"))
