"""Dense stacks handed over as descriptors, as on Hopper and later, give the bits that pointers give, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.experts_cases import CASES, make, poisoned, run
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import operands
from ms4_kernels.moe.triton.experts import experts_triton

CASE = next(case for case in CASES if case.trained and case.dtype == torch.bfloat16 and case.lora == "both" and not case.slow)


@pytest.mark.parametrize("far", [False, True], ids=["packed", "experts far apart"])
def test_the_same_bits(monkeypatch, far):
    inputs = make(CASE)
    if far:  # the last expert lies past 2^31 elements; memory that is never touched costs nothing
        experts, rows, columns = inputs.gate_up_eid.shape
        stride = (2**31 // (experts - 1) // 16 + 1) * 16
        storage = torch.empty((experts - 1) * stride + rows * columns, dtype=torch.bfloat16)
        apart = storage.as_strided((experts, rows, columns), (stride, columns, 1))
        apart.copy_(inputs.gate_up_eid.detach())
        inputs = dataclasses.replace(inputs, gate_up_eid=apart)
        assert (experts - 1) * stride >= 2**31
    kinds, found = [], []
    told = operands.stack_constants
    monkeypatch.setattr(operands, "stack_constants", lambda kind, *sizes: kinds.append(kind) or told(kind, *sizes))
    for described in (False, True):
        monkeypatch.setattr(operands, "copies_tiles", lambda device, described=described: described)
        with interpreted(check=False), poisoned():
            found.append(run(experts_triton, inputs))
    assert kinds.count("dense") == kinds.count("described") == 4  # up, down, dh and dx
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
