"""Random weights for a model that is trained from nothing.

Each parameter draws from a generator of its own, seeded by the run's seed and the parameter's name: the values depend neither on the order
of the modules nor on which other parameters exist. Exercise it: ``pytest tests/ms4_train/model/test_initialise.py``.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Fill every parameter of ``model`` in place, by :func:`init_parameter`."""
    for name, parameter in model.named_parameters():
        init_parameter(name, parameter, seed, std)


@torch.no_grad()
def init_parameter(name: str, parameter: Tensor, seed: int, std: float = 0.02) -> None:
    """Fill one parameter in place: ones for norms, else normal with mean 0, drawn in fp32 on the CPU and then cast.

    Args:
        name: full name in the model.
        parameter: the tensor to fill.
        seed: of the whole model.
        std: standard deviation.
    """
    if name.endswith(("norm.weight", "ln_pre.weight")):
        parameter.fill_(1.0)
        return
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))
