"""The two forms of attention against each other, isolation of documents, and memory."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from support.models import tiny_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.attention import packed_attention
from ms4_train.model import DenseLatentCache, RopeParameters, SequenceLayout
from ms4_train.model import attention as attention_module
from ms4_train.model.attention import Mistral4Attention
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.rope import RotaryTable
from ms4_train.model.row_segments import RowSegment, current_segments, row_segments

ROPE = RopeParameters(factor=8.0, original_max_position_embeddings=16)
CONFIGS = {
    "equal widths": tiny_config(num_hidden_layers=1, rope_parameters=ROPE),
    "wide values": tiny_config(num_hidden_layers=1, v_head_dim=24, rope_parameters=ROPE),
    "narrow values": tiny_config(num_hidden_layers=1, v_head_dim=6, softmax_scale="mscale", rope_parameters=ROPE),
}
# fp64: the forms differ only in the order of operations.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_attention(config):
    attention = Mistral4Attention(config, layer=0).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention


def attend(attention, config, hidden_td, layout, cache=None):
    plan = AttentionPlan.build(layout, config, RotaryTable(config), hidden_td.device, cache)
    return attention(hidden_td, plan, cache)


def make_cache(config):
    return DenseLatentCache(config, slots=3, max_len=64, dtype=torch.float64)


@pytest.mark.parametrize("prepared", [None, False, True], ids=["on the fly", "prepared", "joined"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_absorbed_form_equals_expanded_form(name, prepared):
    """Prefill in chunks of uneven length, then single tokens, past the boundary of the query scale; two sequences in one batch."""
    config = CONFIGS[name]
    attention, cache = make_attention(config), make_cache(config)
    if prepared is not None:
        attention.prepare_decode(joins=prepared)
        assert (attention._first_oi is not None) == prepared
    lengths = (40, 29)
    hidden = [torch.randn(length, config.hidden_size, dtype=torch.float64) for length in lengths]
    expected = [attend(attention, config, x, SequenceLayout((len(x),))) for x in hidden]

    starts, outs = [0, 0], ([], [])
    for step in ((10, 3), (5, 20), (24, 5), (1, 1)):
        layout = SequenceLayout(step, tuple(starts), slots=(2, 0))
        pieces = [x[start : start + length] for x, start, length in zip(hidden, starts, step, strict=True)]
        out_td = attend(attention, config, torch.cat(pieces), layout, cache)
        for sequence, piece in enumerate(out_td.split(step)):
            outs[sequence].append(piece)
            starts[sequence] += step[sequence]
    for pieces, whole in zip(outs, expected, strict=True):
        torch.testing.assert_close(torch.cat(pieces), whole, **EXACT)


@pytest.mark.parametrize("first", ["fresh", "continuing"])
@torch.no_grad()
def test_prefill_and_decode_share_a_batch(first):
    """In either order: a fresh sequence at the front takes the expanded form, one further back the absorbed one."""
    config = CONFIGS["equal widths"]
    attention, cache = make_attention(config), make_cache(config)
    old, new = torch.randn(9, 64, dtype=torch.float64), torch.randn(5, 64, dtype=torch.float64)
    attend(attention, config, old[:8], SequenceLayout((8,), slots=(1,)), cache)
    if first == "fresh":
        out_td = attend(attention, config, torch.cat((new, old[8:])), SequenceLayout((5, 1), (0, 8), (0, 1)), cache).roll(1, 0)
    else:
        out_td = attend(attention, config, torch.cat((old[8:], new)), SequenceLayout((1, 5), (8, 0), (1, 0)), cache)
    torch.testing.assert_close(out_td[:1], attend(attention, config, old, SequenceLayout((9,)))[8:], **EXACT)
    torch.testing.assert_close(out_td[1:], attend(attention, config, new, SequenceLayout((5,))), **EXACT)


@torch.no_grad()
def test_blocks_may_lie_anywhere_and_hold_anything_past_the_end():
    """Small blocks in wild order, one of them shared by two sequences that begin alike; what nobody wrote is NaN."""
    config = CONFIGS["equal widths"]
    attention = make_attention(config)
    cache = DenseLatentCache(config, slots=9, max_len=4, dtype=torch.float64)  # nine blocks of four tokens
    cache.pools[0].fill_(torch.nan)
    one, other = torch.randn(11, 64, dtype=torch.float64), torch.randn(9, 64, dtype=torch.float64)
    other[:4] = one[:4]
    attend(attention, config, one[:9], SequenceLayout((9,), blocks=((7, 2, 5),)), cache)
    attend(attention, config, other[4:7], SequenceLayout((3,), (4,), blocks=((7, 0, 3),)), cache)
    out_td = attend(
        attention, config, torch.cat((one[9:], other[7:])), SequenceLayout((2, 2), (9, 7), blocks=((7, 2, 5), (7, 0, 3))), cache
    )
    torch.testing.assert_close(out_td[:2], attend(attention, config, one, SequenceLayout((11,)))[9:], **EXACT)
    torch.testing.assert_close(out_td[2:], attend(attention, config, other, SequenceLayout((9,)))[7:], **EXACT)
    assert cache.pools[0][[1, 4, 6, 8]].isnan().all()


def test_a_gradient_through_the_cache_is_refused():
    config = CONFIGS["equal widths"]
    attention, cache = make_attention(config), make_cache(config)
    with pytest.raises(ValueError, match="no gradient"):
        attend(attention, config, torch.randn(1, 64, dtype=torch.float64), SequenceLayout((1,), (5,), (0,)), cache)
    attend(attention, config, torch.randn(5, 64, dtype=torch.float64), SequenceLayout((5,), slots=(0,)), cache).sum().backward()


class LowRank(nn.Module):
    """A linear with a low-rank update beside it, as adapters wrap one."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.b = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()


@torch.no_grad()
def test_an_adapter_on_the_up_projection_counts_in_the_absorbed_form():
    config = CONFIGS["equal widths"]
    plain = make_attention(config)
    adapted = copy.deepcopy(plain)
    adapted.kv_b_proj = LowRank(adapted.kv_b_proj)  # type: ignore[assignment]
    hidden_td = torch.randn(7, 64, dtype=torch.float64)
    outs = []
    for attention in (adapted, plain):
        cache = make_cache(config)
        attention.prepare_decode()
        attend(attention, config, hidden_td[:6], SequenceLayout((6,), slots=(0,)), cache)
        outs.append(attend(attention, config, hidden_td[6:], SequenceLayout((1,), (6,), (0,)), cache))
    torch.testing.assert_close(outs[0], attend(adapted, config, hidden_td, SequenceLayout((7,)))[6:], **EXACT)
    assert (outs[0] - outs[1]).abs().max() > 0.1  # the adapter does something


class LowRankByRow(LowRank):
    """Adds its update to the rows that are for the adapter "one", as ``LoraLinear`` does with several."""

    def names_of(self, adapter):
        return () if adapter is None else (adapter,)

    def forward(self, x):
        segments = current_segments()
        assert segments is not None
        assert segments[-1].stop == len(x)
        y = self.base(x)
        for adapter, start, stop in segments:
            if adapter == "one":
                y[start:stop] += x[start:stop] @ self.a.t() @ self.b.t()
        return y


@pytest.mark.parametrize("prepared", [False, True])
@torch.no_grad()
def test_each_row_sees_the_up_projection_of_its_adapter(prepared):
    """Expanded and absorbed rows, for an adapter and for none, in one pass; each equals a pass of its own."""
    config = CONFIGS["equal widths"]
    plain = make_attention(config)
    adapted, mixed = copy.deepcopy(plain), copy.deepcopy(plain)
    adapted.kv_b_proj = LowRank(plain.kv_b_proj)  # type: ignore[assignment]
    mixed.kv_b_proj = LowRankByRow(plain.kv_b_proj)  # type: ignore[assignment]
    mixed.kv_b_proj.load_state_dict(adapted.kv_b_proj.state_dict())
    if prepared:
        with row_segments([RowSegment(None, 0, config.kv_lora_rank)]):
            mixed.prepare_decode()
    cache = DenseLatentCache(config, slots=4, max_len=16, dtype=torch.float64)
    names, slots = (None, "one", None, "one"), (3, 0, 2, 1)
    hidden = [torch.randn(length, 64, dtype=torch.float64) for length in (5, 4, 7, 9)]
    for x, slot, name in zip(hidden[2:], slots[2:], names[2:], strict=True):
        with row_segments([RowSegment(name, 0, len(x) - 2)]):
            attend(mixed, config, x[:-2], SequenceLayout((len(x) - 2,), slots=(slot,)), cache)
    pieces, ends = [*hidden[:2], *(x[-2:] for x in hidden[2:])], (5, 9, 11, 13)
    layout = SequenceLayout((5, 4, 2, 2), (0, 0, 5, 7), slots)
    with row_segments([RowSegment(name, end - len(x), end) for name, x, end in zip(names, pieces, ends, strict=True)]):
        out_td = attend(mixed, config, torch.cat(pieces), layout, cache)
    for name, x, piece, actual_td in zip(names, hidden, pieces, out_td.split(layout.lengths), strict=True):
        right, wrong = (plain, adapted) if name is None else (adapted, plain)
        whole = SequenceLayout((len(x),))
        torch.testing.assert_close(actual_td, attend(right, config, x, whole)[-len(piece) :], **EXACT)
        assert (actual_td - attend(wrong, config, x, whole)[-len(piece) :]).abs().max() > 0.1


@torch.no_grad()
def test_released_matrices_are_computed_anew():
    config = CONFIGS["equal widths"]
    attention, cache = make_attention(config), make_cache(config)
    hidden_td, layout = torch.randn(1, 64, dtype=torch.float64), SequenceLayout((1,), (3,), (0,))
    attention.prepare_decode()
    before = attend(attention, config, hidden_td, layout, cache)
    attention.kv_b_proj.weight.mul_(2)
    assert torch.equal(attend(attention, config, hidden_td, layout, cache), before)  # why training must drop them
    attention.release_decode()
    assert not torch.allclose(attend(attention, config, hidden_td, layout, cache), before)


@torch.no_grad()
def test_documents_do_not_see_each_other():
    config = CONFIGS["equal widths"]
    attention, layout = make_attention(config), SequenceLayout((20, 7, 70, 1))
    hidden_td = torch.randn(98, 64, dtype=torch.float64)
    changed_td = hidden_td.clone()
    changed_td[20:27] += 1.0
    difference_t = (attend(attention, config, hidden_td, layout) - attend(attention, config, changed_td, layout)).abs().amax(dim=1)
    assert difference_t[20:27].min() > 1e-3
    assert not difference_t[:20].any()
    assert not difference_t[27:].any()


def test_continuing_without_a_cache_is_refused():
    config = CONFIGS["equal widths"]
    with pytest.raises(ValueError, match="need the cache"):
        attend(make_attention(config), config, torch.zeros(1, 64, dtype=torch.float64), SequenceLayout((1,), (4,), (0,)))


@torch.no_grad()
def test_a_pass_without_tokens_returns_none():
    config = CONFIGS["wide values"]
    plan = AttentionPlan.empty(RotaryTable(config), torch.device("cpu"))
    assert make_attention(config)(torch.zeros(0, 64, dtype=torch.float64), plan, make_cache(config)).shape == (0, 64)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("lengths", [(1500,), (700, 650, 20, 90, 40)], ids=["one document", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_linear_in_the_tokens(name, lengths):
    config = CONFIGS[name]
    attention = make_attention(config).float()
    hidden_td = torch.randn(1500, 64, requires_grad=True)
    with LargestTensor() as watch:
        attend(attention, config, hidden_td, SequenceLayout(lengths)).sum().backward()
    widest = config.num_attention_heads * (config.qk_nope_head_dim + max(config.v_head_dim, config.qk_head_dim))
    assert watch.largest <= 1.34 * 1500 * widest


def test_the_memory_check_sees_a_quadratic_kernel(monkeypatch):
    monkeypatch.setattr(attention_module, "packed_attention", partial(packed_attention, backend="reference"))
    config = CONFIGS["equal widths"]
    attention = make_attention(config).float()
    with LargestTensor() as watch:
        attend(attention, config, torch.randn(1500, 64), SequenceLayout((1500,)))
    assert watch.largest >= 1500 * 1500
