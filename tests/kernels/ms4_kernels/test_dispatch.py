"""Who is chosen where, what is said, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from ms4_kernels import dispatch
from ms4_kernels.dispatch import _choose, choose, runs_triton


@pytest.fixture(autouse=True)
def _afresh():
    _choose.cache_clear()
    yield
    _choose.cache_clear()


def test_on_the_cpu():
    x = torch.zeros(1)
    assert choose("experts", "auto", x) == "cpu"
    assert choose("experts", "reference", x) == "reference"
    assert not runs_triton(torch.device("cpu"))
    with pytest.raises(ValueError, match="no Triton kernel for device cpu"):
        choose("experts", "triton", x)
    with pytest.raises(ValueError, match="unknown experts backend 'fast'"):
        choose("experts", "fast", x)  # type: ignore[arg-type]


def test_where_kernels_can_be_launched(monkeypatch):
    monkeypatch.setattr(dispatch, "runs_triton", lambda device: True)
    x = torch.zeros(1)
    assert choose("experts", "auto", x) == "triton"
    assert choose("experts", "auto", x.double()) == "cpu"
    assert choose("experts", "auto", x, has_kernel=False) == "cpu"
    assert choose("experts", "cpu", x) == "cpu"
    with pytest.raises(ValueError, match="float64"):
        choose("experts", "triton", x.double())
    with pytest.raises(ValueError, match="this kind of call"):
        choose("experts", "triton", x, has_kernel=False)


def test_each_choice_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="ms4_kernels"):
        for _ in range(2):
            choose("experts", "auto", torch.zeros(1))
        choose("routing", "auto", torch.zeros(1))
    assert [record.getMessage() for record in caplog.records] == [
        "experts operation: cpu backend on cpu, float32",
        "routing operation: cpu backend on cpu, float32",
    ]


def test_a_gpu_without_triton_is_warned_about(caplog):
    with caplog.at_level(logging.INFO, logger="ms4_kernels"):
        assert _choose("experts", "auto", "cuda", torch.bfloat16, True, False) == "cpu"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "slow" in record.getMessage()
