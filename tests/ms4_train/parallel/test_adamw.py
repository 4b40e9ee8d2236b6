"""AdamW's groups and its state from the start, against torch's own."""

import copy

import pytest
import torch

from ms4_train.config.schema import TrainingSection
from ms4_train.parallel.adamw import make_adamw, set_fresh_state, set_learning_rate

TRAINING = TrainingSection(learning_rate=1e-2, weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7)


def _parameters(count):
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(5, 4, generator=generator)) for _ in range(count)]


def _step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_options_and_decay_reach_torch():
    decayed, plain = _parameters(2)
    optimizer = make_adamw([{"params": [decayed], "decays": True, "name": "a"}, {"params": [plain], "decays": False}], TRAINING)
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.3, 0.0)
    assert first["name"] == "a"
    assert (first["betas"], first["eps"], first["lr"]) == ((0.8, 0.95), 1e-7, 1e-2)


def test_empty_groups_are_left_out():
    optimizer = make_adamw([{"params": [], "decays": True}, {"params": _parameters(1), "decays": False}], TRAINING)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_fresh_state_is_the_state_torch_makes(fused):
    """Steps from fresh state equal steps from no state, bit for bit, and leave the same kinds of tensors."""
    parameters = _parameters(2)
    twins = copy.deepcopy(parameters)
    optimizer, twin = (torch.optim.AdamW(group, lr=1e-2, fused=fused or None) for group in (parameters, twins))
    for parameter in parameters:
        set_fresh_state(optimizer, parameter, 0)
    for seed in range(3):
        _step(optimizer, parameters, seed)
        _step(twin, twins, seed)
    for parameter, other in zip(parameters, twins, strict=True):
        assert torch.equal(parameter, other)
        state, expected = optimizer.state[parameter], twin.state[other]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(state[key], value)
            assert (state[key].dtype, state[key].requires_grad) == (value.dtype, value.requires_grad)


def test_learning_rate_reaches_every_group():
    optimizer = make_adamw([{"params": [p], "decays": True} for p in _parameters(2)], TRAINING)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
