"""The gradient of the pre-activation and of the routing weights, in every shipped tile, against autograd in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import launch, operands
from ms4_kernels.moe.triton.operands import Factor, Stack
from ms4_kernels.moe.triton.tiles import dh_tile

D, N = 136, 200


def plain(rows, h_ri, dout_td, weight_edn, weights_tk, low_rp, factor_epn, dtype):
    """Autograd through the activation, the weighted product and the tail, in the type."""
    h = h_ri.detach().to(dtype).requires_grad_()
    route_r = weights_tk.reshape(-1)[rows.order.pair_r].to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    act = F.silu(h[:, :N]) * h[:, N:]
    weighted = (act * route_r[:, None]).to(dtype)
    dout_rd = dout_td.to(dtype)[rows.order.token_r]
    dact = []
    for e, (a, b) in enumerate(itertools.pairwise([0, *rows.order.ends_e.tolist()])):
        dact.append(dout_rd[a:b] @ weight_edn[e].to(dtype) + low_rp[a:b].to(dtype) @ factor_epn[e].to(dtype))
    dh, droute = torch.autograd.grad(weighted, (h, route_r), torch.cat(dact))
    return dh, weighted.detach(), droute


@pytest.mark.parametrize("described", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("rows_per_expert", [1, 16, 48, 256])
def test_dh_activation_and_dots(ragged, holds, monkeypatch, rows_per_expert, described):
    monkeypatch.setattr(operands, "copies_tiles", lambda device: described)
    monkeypatch.setattr(launch, "dh_tile", lambda _, dtype, kind: dh_tile(rows_per_expert, dtype, kind))
    h_ri, dout_td = torch.randn(94, 2 * N).bfloat16(), torch.randn(47, D).bfloat16()
    weight_edn, factor_epn = (torch.randn(5, D, N) / D**0.5).bfloat16(), (torch.randn(5, 8, N) / 3).bfloat16()
    low_rp, weights_tk = torch.randn(94, 8).bfloat16(), torch.rand(47, 2)
    with interpreted():
        found = launch.dh(dout_td, Stack.of(weight_edn), ragged, weights_tk, h_ri, low_rp, Factor(factor_epn), save_act=True)
    assert found[2][-1] == 0  # what slots without a row read
    found = (*found[:2], found[2][:-1])
    inputs = (ragged, h_ri, dout_td, weight_edn, weights_tk, low_rp, factor_epn)
    for one, truth, bar in zip(found, plain(*inputs, torch.float64), plain(*inputs, torch.bfloat16), strict=True):
        assert one is not None
        holds(one, truth, bar)


def test_activation_only_if_asked_for(ragged):
    arguments = (torch.randn(47, 32), Stack.of(torch.randn(5, 32, 48)), ragged, torch.rand(47, 2), torch.randn(94, 96))
    with interpreted():
        dh_ri, act_rn, dot_r = launch.dh(*arguments, save_act=True)
        again_ri, nothing, dots_r = launch.dh(*arguments, save_act=False)
    assert act_rn is not None
    assert nothing is None
    assert torch.equal(dh_ri, again_ri)
    assert torch.equal(dot_r, dots_r)
