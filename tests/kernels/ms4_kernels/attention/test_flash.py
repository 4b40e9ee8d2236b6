"""The call of FlashAttention: a stand-in with the package's signature checks what it is given and computes by torch's own attention."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from support.attention_rows import (
    CAUSAL,
    ROWS,
    SCALE,
    WIDTHS,
    documents_of,
    exact_results,
    output_and_gradients,
    row_inputs,
    torch_attention,
)

from ms4_kernels.attention import flash
from ms4_kernels.attention.flash import attention_flash, call_varlen


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """The signature of flash-attn 2.8; it wants one width, int32 boundaries and a true maximum."""
    assert q.shape == k.shape == v.shape
    assert q.shape[-1] <= 256
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    lengths = cu_seqlens_q.diff().tolist()
    assert cu_seqlens_k.diff().tolist() == lengths
    assert max_seqlen_q == max_seqlen_k == max(lengths)
    assert (dropout_p, softmax_scale) == (0.0, SCALE)
    return torch_attention(lengths, causal)(q, k, v)


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("returns_tuple", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
def test_equals_torch(widths, returns_tuple, causal):
    lengths = ROWS["mixed"]
    inputs, grad_out = row_inputs(lengths, WIDTHS[widths])

    def varlen(*args, **kwargs):
        out = flash_attn_varlen_func(*args, **kwargs)
        return (out, None) if returns_tuple else out

    got = output_and_gradients(lambda *qkv: call_varlen(varlen, *qkv, documents_of(lengths), SCALE, CAUSAL[causal]), inputs, grad_out)
    for mine, truth in zip(got, exact_results(lengths, inputs, grad_out, CAUSAL[causal]), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)  # fp64: only the order of sums differs


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        ((9, 0), {"flash_attn", "flash_attn_interface"}, "flash_attn_interface"),
        ((8, 0), {"flash_attn", "flash_attn_interface"}, "flash_attn"),
        ((8, 0), {"flash_attn_interface"}, None),
        ((9, 0), {"flash_attn"}, "flash_attn"),
        ((9, 0), set(), None),
    ],
)
def test_version_3_is_for_hopper(monkeypatch, capability, installed, expected):
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: object() if name in installed else None)
    assert flash._package.__wrapped__(capability) == expected


def test_the_named_module_is_called(monkeypatch):
    module = types.ModuleType("flash_attn")
    monkeypatch.setattr(module, "flash_attn_varlen_func", flash_attn_varlen_func, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "flash_package", lambda device: "flash_attn")
    inputs, _ = row_inputs((5, 3))
    for causal in CAUSAL.values():
        out = attention_flash(*inputs, documents_of((5, 3)), SCALE, causal)
        torch.testing.assert_close(out, torch_attention((5, 3), causal)(*inputs))


def test_nothing_for_a_cpu():
    assert flash.flash_package(torch.device("cpu")) is None
