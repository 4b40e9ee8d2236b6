"""All weights whole for a while under ZeRO 3, so that a model in training generates without DeepSpeed's help.

DeepSpeed gathers the weights of a module when it is called and drops them behind it. Generation calls modules thousands of times, ranks
call them differently often (images, an empty step), and reads weights where no call shows it. So everything this rank computes with is
gathered once, DeepSpeed's hooks are taken off their modules meanwhile, and at the end both are put back. What is gathered: replicated
parameters over all ranks, experts over the ranks that hold the same ones; partitions that wait on the CPU come from there and stay there.
Exercise it: ``pytest tests/ms4_train/parallel/test_deepspeed_gather.py``.

Not covered: whether the device has room for all of it beside the optimizer; partitions on NVMe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def whole_parameters(model: nn.Module, zero_optimizer: Any) -> Iterator[None]:
    """Inside, every parameter of ``model`` is whole and no hook of DeepSpeed runs. Collective at both ends; weights must not be changed.

    Args:
        model: that DeepSpeed's engine trains.
        zero_optimizer: its optimizer, of stage 3.
    """
    import deepspeed

    # As before an optimizer step: nothing is on its way or in use. Small parameters, which stay whole between steps, are let go too, so
    # that the state in which DeepSpeed finds them afterwards is one it knows.
    zero_optimizer._partition_all_parameters()
    try:
        with deepspeed.zero.GatheredParameters(list(model.parameters())), _without_hooks(zero_optimizer.parameter_offload):
            yield
    finally:
        persistent = zero_optimizer.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)


@contextmanager
def _without_hooks(offload: Any) -> Iterator[None]:
    """Take DeepSpeed's hooks off all modules, and put them back where they were among the others."""
    taken: list[tuple[OrderedDict[int, Callable[..., Any]], list[tuple[int, Callable[..., Any]]], set[int]]] = []
    ids: dict[int, tuple[OrderedDict[int, Callable[..., Any]], set[int]]] = {}
    for handle in [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]:
        hooks = handle.hooks_dict_ref()
        if hooks is not None and handle.id in hooks:
            ids.setdefault(id(hooks), (hooks, set()))[1].add(handle.id)
    for hooks, own in ids.values():
        taken.append((hooks, list(hooks.items()), own))
        for number in own:
            del hooks[number]
    try:
        yield
    finally:
        for hooks, before, own in taken:
            now = dict(hooks)
            hooks.clear()
            for number, hook in before:
                if number in own or number in now:
                    hooks[number] = now.pop(number, hook)
            hooks.update(now)
