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
    plan = AttentionPlan.build(layout, config, RotaryTable(config), hidden_td.device)
    return attention(hidden_td, plan, cache)


def make_cache(config):
    return DenseLatentCache(config, slots=3, max_len=64, dtype=torch.float64)


@pytest.mark.parametrize("prepared", [False, True], ids=["on the fly", "prepared"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_absorbed_form_equals_expanded_form(name, prepared):
    """Prefill in chunks of uneven length, then single tokens, past the boundary of the query scale; two sequences in one batch."""
    config = CONFIGS[name]
    attention, cache = make_attention(config), make_cache(config)
    if prepared:
        attention.prepare_decode()
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


@torch.no_grad()
def test_prefill_and_decode_share_a_batch():
    config = CONFIGS["equal widths"]
    attention, cache = make_attention(config), make_cache(config)
    old, new = torch.randn(9, 64, dtype=torch.float64), torch.randn(5, 64, dtype=torch.float64)
    attend(attention, config, old[:8], SequenceLayout((8,), slots=(1,)), cache)
    out_td = attend(attention, config, torch.cat((old[8:], new)), SequenceLayout((1, 5), (8, 0), (1, 0)), cache)
    torch.testing.assert_close(out_td[:1], attend(attention, config, old, SequenceLayout((9,)))[8:], **EXACT)
    torch.testing.assert_close(out_td[1:], attend(attention, config, new, SequenceLayout((5,))), **EXACT)


def test_gradients_of_the_absorbed_form_reach_the_up_projection():
    config = CONFIGS["equal widths"]
    attention, cache = make_attention(config), make_cache(config)
    hidden_td = torch.randn(6, 64, dtype=torch.float64)
    with torch.no_grad():
        attend(attention, config, hidden_td[:5], SequenceLayout((5,), slots=(0,)), cache)
    attend(attention, config, hidden_td[5:], SequenceLayout((1,), (5,), (0,)), cache).sum().backward()
    assert attention.kv_b_proj.weight.grad is not None
    assert attention.kv_b_proj.weight.grad.any()


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
