"""The plain engine against a hand-written torch loop, and its state out and back."""

import copy

import pytest
import torch
from support.parallel_runs import reader
from torch import nn

from ms4_train.config.schema import TrainingSection
from ms4_train.errors import CheckpointError, TrainingError
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine

TRAINING = TrainingSection(weight_decay=0.2, adam_beta2=0.95)
RATE = 3e-3


def _model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)).to(dtype)


def _batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, generator=generator).to(dtype), torch.randn(4, 3, generator=generator).to(dtype)


def _loss(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).float().square().sum()


def _train(engine, steps, dtype=torch.float32, clip=0.5, first=0):
    norms = []
    for step in range(first, first + steps):
        for micro in range(2):
            engine.backward(_loss(engine.model, _batch(10 * step + micro, dtype)), is_last_micro_batch=micro == 1)
        norms.append(engine.step(RATE, clip))
    return norms


def _stored(engine):
    """State as a checkpoint would hold it: copies, by name."""
    return {
        state.name: {
            **{kind: tensor.clone().view(state.full_shape) for kind, tensor in state.tensors.items()},
            "step": torch.tensor(state.step),
        }
        for state in engine.export_state()
    }


def test_equals_a_plain_torch_loop():
    """Same weights and norms as AdamW (the unfused one) with clip_grad_norm_; 1e-6 allows for fused rounding."""
    model, plain = _model(), _model()
    engine = LocalEngine(model, Mesh(), training=TRAINING)
    decayed = [p for p in plain.parameters() if p.ndim >= 2]
    rest = [p for p in plain.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95), foreach=False
    )
    norms = _train(engine, 5)
    for step, norm in enumerate(norms):
        for micro in range(2):
            _loss(plain, _batch(10 * step + micro)).backward()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(plain.parameters(), 0.5)), rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_zero_max_grad_norm_does_not_clip():
    """Without clipping, a gradient ten times larger gives the same first Adam step; clipped to a tiny norm, epsilon would show."""
    clipped, unclipped = LocalEngine(_model(), Mesh(), training=TRAINING), LocalEngine(_model(), Mesh(), training=TRAINING)
    _train(clipped, 1, clip=1e-9)
    norm = _train(unclipped, 1, clip=0.0)[0]
    assert norm > 1
    moments = next(unclipped.export_state()).tensors["exp_avg"], next(clipped.export_state()).tensors["exp_avg"]
    assert moments[0].norm() > 1e6 * moments[1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_then_import_goes_on_bit_exactly(dtype):
    straight = LocalEngine(_model(dtype), Mesh(), training=TRAINING)
    _train(straight, 3, dtype)
    stored = _stored(straight)
    resumed = LocalEngine(_model(dtype, seed=9), Mesh(), training=TRAINING)
    resumed.import_state(reader(stored))
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, straight.model.get_parameter(name))
    assert _train(resumed, 3, dtype, first=3) == _train(straight, 3, dtype, first=3)
    for name, state in _stored(straight).items():
        for kind, tensor in _stored(resumed)[name].items():
            assert torch.equal(tensor, state[kind]), (name, kind)


def test_state_can_be_exported_before_the_first_step():
    engine = LocalEngine(_model(), Mesh(), training=TRAINING)
    for state in engine.export_state():
        assert state.step == 0
        assert (state.start, state.stop) == (0, state.tensors["weight"].numel())
        assert not state.tensors["exp_avg"].any()
        assert torch.equal(state.tensors["weight"].view(state.full_shape), engine.model.get_parameter(state.name))


def test_bf16_keeps_updates_that_bf16_would_lose():
    """Ten steps of 1e-4 on a weight near 1 vanish in bf16 (spacing 2^-8) and must not vanish in the master."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    lossy = copy.deepcopy(model)
    engine = LocalEngine(model, Mesh(), training=TrainingSection())
    optimizer = torch.optim.AdamW(lossy.parameters(), lr=1e-4, weight_decay=0)
    for _ in range(10):
        engine.backward(model(torch.ones(1, 1, dtype=torch.bfloat16)).sum(), is_last_micro_batch=True)
        engine.step(1e-4, 0.0)
        lossy(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(next(engine.export_state()).tensors["weight"]) == pytest.approx(1 - 10e-4, abs=1e-6)
    assert lossy.weight.item() == 1.0


def test_bf16_micro_batches_are_added_in_fp32():
    """1 + 64 * 2^-9 is 1.125 in fp32; added one by one in bf16, each 2^-9 is rounded away."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    engine = LocalEngine(model, Mesh(), training=TrainingSection())
    for value in [1.0] + [2.0**-9] * 64:
        engine.backward(model(torch.full((1, 1), value, dtype=torch.bfloat16)).sum(), is_last_micro_batch=False)
    assert engine.step(0.0, 0.0) == 1.125
    total = torch.tensor(1.0, dtype=torch.bfloat16)
    for _ in range(64):
        total += 2.0**-9
    assert float(total) == 1.0


def test_a_norm_that_is_not_finite_changes_nothing():
    engine = LocalEngine(_model(), Mesh(), training=TRAINING)
    before = _stored(engine)
    engine.backward(_loss(engine.model, _batch(0)) * float("nan"), is_last_micro_batch=True)
    with pytest.raises(TrainingError, match="gradient norm is nan"):
        engine.step(RATE, 1.0)
    for name, state in _stored(engine).items():
        assert all(torch.equal(tensor, before[name][kind]) for kind, tensor in state.items())


def test_a_parameter_without_gradient_counts_as_zero():
    """As under DeepSpeed: it decays and its step count moves with the others."""
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(6, 3)})
    engine = LocalEngine(model, Mesh(), training=TRAINING)
    before = model["unused"].weight.detach().clone()
    engine.backward(model["used"](torch.ones(1, 6)).sum(), is_last_micro_batch=True)
    engine.step(RATE, 0.0)
    torch.testing.assert_close(model["unused"].weight, before * (1 - RATE * 0.2))
    assert {state.step for state in engine.export_state()} == {1}


def test_only_trained_parameters_have_state_and_any_can_be_read():
    model = _model(torch.bfloat16)
    model[0].requires_grad_(False)
    engine = LocalEngine(model, Mesh(), training=TRAINING)
    assert [state.name for state in engine.export_state()] == ["1.weight", "1.bias", "2.weight"]
    read = dict(engine.full_parameters(["0.weight", "2.weight"]))
    assert read["0.weight"].dtype == torch.bfloat16
    assert torch.equal(read["0.weight"], model[0].weight)


def test_a_frozen_model_is_refused():
    with pytest.raises(TrainingError, match="no parameter of the model is trained"):
        LocalEngine(_model().requires_grad_(False), Mesh(), training=TRAINING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("exp_avg"), "2.weight: the stored state has no exp_avg"),
        (lambda state: state.pop("step"), "2.weight: the stored state has no step"),
        (lambda state: state.update(weight=torch.zeros(23)), r"2.weight: the stored weight is torch.float32 \[23\]; .* \[24\]"),
        (lambda state: state.update(exp_avg_sq=torch.zeros(24).bfloat16()), "2.weight: the stored exp_avg_sq is torch.bfloat16"),
    ],
)
def test_state_that_does_not_fit_is_refused(change, message):
    engine = LocalEngine(_model(), Mesh(), training=TRAINING)
    stored = _stored(engine)
    change(stored["2.weight"])
    with pytest.raises(CheckpointError, match=message):
        engine.import_state(reader(stored))


def test_stage_0_on_two_ranks_equals_one_process(light_report):
    """Gradients summed over ranks, experts counted once in the norm; fp32 rounding only (relative 1e-5)."""
    for report in light_report:
        stage_0 = report["stage_0"]
        assert stage_0["loss"] < 1e-5
        assert stage_0["norm"] < 1e-5
        assert stage_0["weight"] < 1e-5
        assert stage_0["state"] < 1e-5
        assert stage_0["held_once"]
        assert stage_0["written"] == pytest.approx(1 / 2, abs=0.01)
