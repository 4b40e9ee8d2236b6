"""Parameters of which a process holds only its share, as ZeRO 3 spreads them: a range of the flattened values.

Between reading and the engine such a parameter is a stand-in: it has its whole shape, its type and its device, but the memory of a single
number, which is not a number: what reads it by mistake gets NaN, and torch refuses to write other than constants into it. The share itself
waits beside it (:func:`share_of`) until the engine takes it.
Exercise it: ``pytest tests/ms4_train/weights/reading/test_shares.py``; reading into shares: ``test_loading_share.py`` beside it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ATTRIBUTE = "flat_share"


@dataclass(frozen=True)
class Sharing:
    """Who shares out what: replicated parameters over ``size`` processes, stacks of experts over the ``expert_size`` that hold the same.

    Each gets ``ceil(n / size)`` of a parameter's n flattened values, in the order of ranks; the last ones may get fewer, or none. This is
    DeepSpeed's own division.
    """

    rank: int
    size: int
    expert_rank: int
    expert_size: int

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, is_expert: bool) -> FlatShare:
        """Memory for this process's share of a parameter of ``shape``, uninitialised but for the padding, which is zero."""
        rank, size = (self.expert_rank, self.expert_size) if is_expert else (self.rank, self.size)
        numel = math.prod(shape)
        length = -(-numel // size)
        start, stop = min(rank * length, numel), min((rank + 1) * length, numel)
        values = torch.empty(length, dtype=dtype)
        values[stop - start :] = 0
        return FlatShare(values, start, stop, shape)


WHOLE = Sharing(0, 1, 0, 1)
"""A process that holds everything."""


@dataclass(frozen=True)
class FlatShare:
    """Values ``[start, stop)`` of a flattened parameter of ``shape``.

    Attributes:
        values: 1-D; behind the share's own values zeros, so that all processes have as many.
    """

    values: Tensor
    start: int
    stop: int
    shape: tuple[int, ...]

    def view(self, start: int, stop: int) -> Tensor:
        """Memory of values ``[start, stop)`` of the flattened parameter, which lie in this share."""
        assert self.start <= start <= stop <= self.stop, (self.start, start, stop, self.stop)
        return self.values[start - self.start : stop - self.start]

    def overlap(self, start: int, stop: int) -> tuple[int, int]:
        """The part of ``[start, stop)`` that lies in this share; empty where none does."""
        first = max(start, self.start)
        return first, max(first, min(stop, self.stop))


def put_share(parameter: nn.Parameter, share: FlatShare) -> None:
    """Let ``share`` wait beside ``parameter``, a stand-in."""
    setattr(parameter, _ATTRIBUTE, share)


def share_of(parameter: Tensor) -> FlatShare | None:
    """The share that waits beside a parameter; None where the parameter holds its values itself."""
    return getattr(parameter, _ATTRIBUTE, None)


def take_share(parameter: nn.Parameter) -> FlatShare | None:
    """The share that waits beside a parameter, which then lets go of it; None where there is none."""
    share = share_of(parameter)
    if share is not None:
        delattr(parameter, _ATTRIBUTE)
    return share


def stand_in(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A tensor of any shape in the memory of one NaN."""
    return torch.full((), math.nan, dtype=dtype, device=device).expand(shape)


def held_bytes(parameter: Tensor) -> int:
    """Bytes of a parameter that this process holds."""
    share = share_of(parameter)
    return parameter.element_size() * (parameter.numel() if share is None else share.values.numel())


@torch.no_grad()
def assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Copy a whole value into a parameter, or what belongs there into the share beside it."""
    share = share_of(parameter)
    if share is None:
        parameter.copy_(value)
        return
    if tuple(value.shape) != share.shape:
        raise ValueError(f"a value {list(value.shape)} for a parameter {list(share.shape)}")
    share.view(share.start, share.stop).copy_(value.reshape(-1)[share.start : share.stop])


def copied_module(module: nn.Module) -> nn.Module:
    """``copy.deepcopy`` of a module, shares included; by itself it would give stand-ins the memory of their whole shape."""
    made: dict[int, object] = {}
    for parameter in module.parameters():
        share = share_of(parameter)
        if share is not None:
            twin = nn.Parameter(stand_in(share.shape, parameter.dtype, parameter.device), requires_grad=parameter.requires_grad)
            put_share(twin, FlatShare(share.values.clone(), share.start, share.stop, share.shape))
            made[id(parameter)] = twin
    return copy.deepcopy(module, made)


@torch.no_grad()
def move(model: nn.Module, device: torch.device, *, shares_only: bool = False) -> nn.Module:
    """``model.to(device)``, except that shares stay where they are.

    Args:
        model: changed in place.
        device: where parameters, buffers and stand-ins go.
        shares_only: leave parameters that hold their values where they are, too.

    Returns:
        The model.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
        for parameter in module.parameters(recurse=False):
            if share_of(parameter) is not None:
                parameter.data = stand_in(tuple(parameter.shape), parameter.dtype, device)
            elif not shares_only:
                parameter.data = parameter.data.to(device)
    return model
