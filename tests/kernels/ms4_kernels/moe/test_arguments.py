"""Parameters to flat lists and back."""

from __future__ import annotations

import torch
from support.quantised import fp8_weight, nvfp4_weight

from ms4_kernels.moe.arguments import flatten, restore
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight


def test_there_and_back():
    parameters = [torch.zeros(2, 3), None, fp8_weight(2, 4, 16), nvfp4_weight(2, 4, 16), None]
    tensors, kinds = flatten(parameters)
    assert kinds == [None, None, Fp8Weight, Nvfp4Weight, None]
    assert len(tensors) == 1 + 1 + 2 + 3 + 1
    back = restore(tensors, kinds)
    assert back[0] is parameters[0]
    assert back[1] is None
    assert back[4] is None
    for ours, theirs in zip(back[2:4], parameters[2:4], strict=True):
        assert all(a is b for a, b in zip(ours.tensors, theirs.tensors, strict=True))
