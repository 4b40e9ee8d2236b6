"""AdamW's groups and its state from the start, against torch's own."""

import copy
import subprocess
import sys

import pytest
import torch

from ms4_train.config.schema import TrainingSection
from ms4_train.parallel.adamw import make_adamw, make_lean_adamw, set_fresh_state, set_learning_rate

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


def test_the_lean_one_equals_torchs_to_the_bit():
    parameters = _parameters(3)
    twins = copy.deepcopy(parameters)
    optimizers = []
    for make, group in ((make_lean_adamw, parameters), (make_adamw, twins)):
        optimizer = make(
            [{"params": group[:2], "decays": True}, {"params": [], "decays": True}, {"params": group[2:], "decays": False}], TRAINING
        )
        for parameter in group:
            set_fresh_state(optimizer, parameter, 0)
        optimizers.append(optimizer)
    for seed in range(4):
        for optimizer, group in zip(optimizers, (parameters, twins), strict=True):
            set_learning_rate(optimizer, 0.1 / (seed + 1))
            _step(optimizer, group, seed)
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in group)
    for parameter, twin in zip(parameters, twins, strict=True):
        assert torch.equal(parameter, twin)
        for key, value in optimizers[1].state[twin].items():
            assert torch.equal(optimizers[0].state[parameter][key], value)


def test_the_lean_one_leaves_a_parameter_without_gradient_alone():
    first, second = _parameters(2)
    before = second.detach().clone()
    optimizer = make_lean_adamw([{"params": [first, second], "decays": True}], TRAINING)
    for parameter in (first, second):
        set_fresh_state(optimizer, parameter, 0)
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, before)


def test_a_step_does_not_load_torchs_compiler():
    code = (
        "import sys, torch\n"
        "from ms4_train.config.schema import TrainingSection\n"
        "from ms4_train.parallel.local import LocalEngine\n"
        "from ms4_train.parallel.mesh import Mesh\n"
        "model = torch.nn.Linear(3, 2)\n"
        "engine = LocalEngine(model, Mesh(), training=TrainingSection())\n"
        "engine.backward(model(torch.ones(4, 3)).sum(), is_last_micro_batch=True)\n"
        "engine.step(1e-3, 1.0)\n"
        "print([name for name in ('torch._dynamo', 'triton', 'sympy') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
