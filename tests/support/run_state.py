"""A small engine with real optimizer state, for tests of checkpoints: two trained matrices, a vector, a frozen matrix."""

import torch
from torch import nn

from ms4_train.checkpoint import RunStateSaver
from ms4_train.config.schema import TrainingSection
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine


class SmallModel(nn.Module):
    def __init__(self, seed=0, width=6, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(width, 4, generator=generator).to(dtype))
        self.second = nn.Parameter(torch.randn(3, width, generator=generator).to(dtype))
        self.scale = nn.Parameter(torch.ones(4, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)

    def forward(self, rows):
        return torch.tanh((rows.to(self.first.dtype) * self.scale) @ self.first.T) @ self.second.T


def small_engine(seed=0, *, steps=0, **keys):
    model = SmallModel(seed, **keys)
    engine = LocalEngine(model, Mesh(), training=TrainingSection(learning_rate=0.05, weight_decay=0.1))
    train_small(engine, steps)
    return engine


def train_small(engine, steps):
    """Steps whose data come from torch's global generator, so that they depend on its state."""
    losses = []
    for _ in range(steps):
        loss = engine.model(torch.randn(5, 4)).float().square().mean()
        engine.backward(loss, is_last_micro_batch=True)
        engine.step(0.05, 1.0)
        losses.append(float(loss.detach()))
    return losses


def saver(root, engine, **keys):
    """A ``RunStateSaver`` with settings that a test need not name."""
    return RunStateSaver(root, engine, **{"expected_bytes": 0, "keep": 2, "config": {"recipe": "small"}, **keys})


def save_now(root, engine, step, state=None, **keys):
    """Save and wait; returns the committed folder."""
    with saver(root, engine, background=False, **keys) as made:
        return made.save(step, {} if state is None else state)


def exported(engine):
    """{name: (weight, exp_avg, exp_avg_sq, step)}, copied."""
    return {piece.name: ({kind: tensor.clone() for kind, tensor in piece.tensors.items()}, piece.step) for piece in engine.export_state()}


def assert_same_state(left, right):
    """Bit for bit."""
    assert left.keys() == right.keys()
    for name, (tensors, step) in left.items():
        assert step == right[name][1], name
        for kind, tensor in tensors.items():
            assert torch.equal(tensor.view(torch.int32), right[name][0][kind].view(torch.int32)), (name, kind)
