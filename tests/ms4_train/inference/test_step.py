"""Both runners are runners: the same pieces give the same hidden states and logits, and nothing is asked of them but the protocol."""

from __future__ import annotations

import torch
from support.steps import Feeder, paged_cache

from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.native_runner import NativeRunner
from ms4_train.inference.step import Runner


def outputs(runner: Runner, feeder: Feeder, prompts) -> list[torch.Tensor]:
    """A prompt in two parts beside a whole one, then single tokens of both; hidden states and logits of the wanted rows."""
    first, second = prompts
    found: list[torch.Tensor] = []
    runner.open()
    for pieces in (
        [feeder.piece("a", first[:5], wanted=[]), feeder.piece("b", second, wanted=[len(second) - 1])],
        [feeder.piece("a", first[5:]), feeder.piece("b", [41], wanted=[0])],
        [feeder.piece("a", [42], wanted=[0]), feeder.piece("b", [43], wanted=[0])],
    ):
        hidden_rd = runner.run(pieces)
        found += [hidden_rd, runner.logits(hidden_rd, [None] * len(hidden_rd))]
    runner.close()
    return found


def test_the_runners_agree(model, prompts) -> None:
    """fp32: sums in other orders, 1e-5 of the largest value."""
    wanted = (prompts[-1][:21], prompts[0])
    native, modules = paged_cache(model), paged_cache(model)
    ours = outputs(NativeRunner(model, native, AdapterRegistry(model)), Feeder(native), wanted)
    theirs = outputs(ModuleRunner(model, modules), Feeder(modules, seed=1), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
