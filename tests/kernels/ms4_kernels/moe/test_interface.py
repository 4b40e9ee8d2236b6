"""Dispatch: the chosen backend is logged once, and bad calls are refused with what was wrong."""

from __future__ import annotations

import logging

import pytest
import torch

from ms4_kernels.dispatch import _choose
from ms4_kernels.moe import ExpertLora, experts
from ms4_kernels.moe.interface import _say
from ms4_kernels.native import library, why_not

DOUBLES = {"hidden_td": torch.zeros(6, 4), "gate_up_eid": torch.zeros(3, 10, 4), "down_edn": torch.zeros(3, 4, 5)}


@pytest.fixture
def call():
    arguments = {
        "hidden_td": torch.randn(6, 4),
        "gate_up_eid": torch.randn(3, 10, 4),
        "down_edn": torch.randn(3, 4, 5),
        "expert_ids_tk": torch.randint(0, 3, (6, 2)),
        "weights_tk": torch.rand(6, 2),
    }
    return lambda **changes: experts(**(arguments | changes))


def test_backends_agree(call):
    torch.testing.assert_close(call(backend="auto"), call(backend="reference"), rtol=1e-5, atol=1e-5)  # fp32, another order of adding
    assert torch.equal(call(backend="auto"), call(backend="cpu"))


def test_choice_is_logged_once(call, caplog):
    _choose.cache_clear()
    _say.cache_clear()
    with caplog.at_level(logging.INFO, logger="ms4_kernels"):
        call()
        call()
        call(**{name: value.double() for name, value in DOUBLES.items()})
    messages = [record.getMessage() for record in caplog.records if "experts operation" in record.getMessage()]
    compiled = "compiled kernels" if library() else f"plain torch, as the compiled kernels cannot: {why_not()}"
    assert messages == [
        "experts operation: cpu backend on cpu, float32",
        f"experts operation on the CPU: {compiled}",
        "experts operation: cpu backend on cpu, float64",
        "experts operation on the CPU: plain torch, as the compiled kernels cannot: they compute fp32 and bf16, not float64",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "cuda"}, "known: auto, reference, cpu, triton"),
        ({"hidden_td": torch.zeros(6, 5)}, r"expected \[T, 4\]"),
        ({"expert_ids_tk": torch.zeros(6, 2)}, "expert ids are torch.float32"),
        ({"down_edn": torch.zeros(3, 5, 4)}, r"\[E, 2n, d\]"),
        ({"down_edn": torch.zeros(2, 4, 5)}, r"\[E, 2n, d\]"),
        ({"hidden_td": torch.zeros(6, 4, dtype=torch.bfloat16)}, "hidden is torch.bfloat16"),
        ({"lora": ExpertLora(torch.zeros(6, 2, 4), torch.zeros(6, 10, 2))}, "does not fit a stack"),  # of all experts beside a rank's share
        ({"lora": ExpertLora(torch.zeros(3, 2, 4), torch.zeros(3, 10, 3))}, "does not fit a stack"),
        ({"lora": ExpertLora(None, None, torch.zeros(3, 2, 5).bfloat16(), torch.zeros(3, 4, 2))}, "for hidden states of torch.float32"),
        ({"gate_up_eid": torch.zeros(3, 10, 4, device="meta")}, "several devices: cpu, meta"),
        ({"weights_tk": torch.zeros(6, 2, device="meta")}, "several devices: cpu, meta"),
        ({"weights_tk": torch.zeros(6, 3)}, "do not fit 6 tokens"),
        ({"expert_ids_tk": torch.zeros(5, 2, dtype=torch.int64), "weights_tk": torch.zeros(5, 2)}, "do not fit 6 tokens"),
        ({"expert_ids_tk": torch.full((6, 2), 3)}, "expert id 3 in a layer of 3 experts"),
    ],
)
def test_bad_calls_are_refused(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
