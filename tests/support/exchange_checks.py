"""What ranks find out about the experts' exchange, together; ``light_worker.py`` and ``exchange_worker.py`` call these functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from support.exchange_cases import (
    EXPERTS,
    HIDDEN,
    ROUTINGS,
    Tokens,
    by_exchange,
    by_one_process,
    counted_by_hand,
    make_stacks,
    tokens_of_ranks,
)
from support.models import tiny_config
from support.parallel_runs import relative
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ms4_train.adapters.adapted import Low
from ms4_train.adapters.expert_lora import StackedLora, StackFactors
from ms4_train.model.moe import Mistral4MoE
from ms4_train.model.row_segments import RowSegment, row_segments
from ms4_train.parallel import Mesh, traffic
from ms4_train.parallel.exchange import ExpertExchange


def worst(values: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error over tensors of the same shapes; empty ones have none."""
    assert [value.shape for value in values] == [other.shape for other in expected]
    return max(relative(value, other) if other.numel() else 0.0 for value, other in zip(values, expected, strict=True))


def check_operation(mesh: Mesh) -> dict[str, Any]:
    """The bare operation in fp64 for every routing, a control, types, repeatability, and bytes [counted, by hand] of each routing."""
    stacks = make_stacks()
    report: dict[str, Any] = {"bytes": {}}
    for name in ROUTINGS:
        everybody = tokens_of_ranks(name, mesh.world_size)
        traffic.take()
        results = by_exchange(mesh, stacks, everybody[mesh.rank])
        report["bytes"][name] = [_as_lists(traffic.take()), counted_by_hand([t.ids_tk for t in everybody], mesh.rank, HIDDEN * 8, 8)]
        report[name] = worst(results, by_one_process(mesh, stacks, everybody))
    everybody = tokens_of_ranks("random", mesh.world_size)
    own = everybody[mesh.rank]
    rolled = [stack.roll(1, 0) for stack in stacks]
    report["rolled_experts"] = relative(by_exchange(mesh, rolled, own)[0], by_one_process(mesh, stacks, everybody)[0])
    traffic.take()
    narrow = Tokens(own.hidden_td.bfloat16(), own.ids_tk, own.weights_tk.float())
    first, second = (by_exchange(mesh, [stack.bfloat16() for stack in stacks], narrow) for _ in range(2))
    by_hand = counted_by_hand([t.ids_tk for t in everybody], mesh.rank, HIDDEN * 2, 4)
    twice = {kind: [2 * forward, 2 * backward] for kind, (forward, backward) in by_hand.items()}
    report["bytes"]["bf16, twice"] = [_as_lists(traffic.take()), twice]
    report["types"] = [str(tensor.dtype) for tensor in first]
    report["repeatable"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return report


def _as_lists(counted: traffic.Traffic) -> dict[str, list[int]]:
    return {kind: [getattr(counted.forward, kind), getattr(counted.backward, kind)] for kind in ("dispatch", "combine", "metadata")}


def make_block(**overrides: Any) -> Mistral4MoE:
    """A block in fp64, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"hidden_size": 16, "moe_intermediate_size": 8, "n_routed_experts": EXPERTS, "num_experts_per_tok": 3}
    block = Mistral4MoE(tiny_config(**sizes | overrides)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return block


def spread(block: Mistral4MoE, mesh: Mesh) -> Mistral4MoE:
    """A copy with this rank's experts, connected to the others."""
    assert mesh.expert_parallel_group is not None
    block = copy.deepcopy(block)
    for parameter in block.experts.parameters():
        parameter.data = parameter.data[slice(*mesh.expert_range(EXPERTS))].clone()
    block.experts.exchange = ExpertExchange(mesh.expert_parallel_group, EXPERTS)
    return block


def inputs_of_ranks(lengths: list[int]) -> list[Tensor]:
    """Hidden states fp64 [T, d] of each rank."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(length, 16, generator=generator, dtype=torch.float64) for length in lengths]


def check_block(mesh: Mesh) -> dict[str, float]:
    """Router, experts and shared expert together: output and every gradient against one process, however the pass is made."""
    report = {}
    for name, lengths, recomputed in (
        ("plain", [7, 3, 5, 2], False),
        ("no_tokens", [0, 6, 0, 1], False),
        ("recomputed", [7, 3, 5, 2], True),
        ("recomputed_no_tokens", [0, 6, 0, 1], True),
    ):
        block, hidden = make_block(), inputs_of_ranks(lengths[: mesh.world_size])
        mine = spread(block, mesh)
        whole_td = torch.cat(hidden).requires_grad_()
        own_td = hidden[mesh.rank].clone().requires_grad_()
        block(whole_td).square().sum().backward()
        out_td = checkpoint(mine, own_td, use_reentrant=False) if recomputed else mine(own_td)
        out_td.square().sum().backward()
        found, expected = [own_td.grad], [whole_td.grad.split([len(x) for x in hidden])[mesh.rank]]  # type: ignore[union-attr]
        local = slice(*mesh.expert_range(EXPERTS))
        for (path, parameter), other in zip(mine.named_parameters(), block.parameters(), strict=True):
            assert parameter.grad is not None, path
            assert other.grad is not None
            is_expert = path.startswith("experts.")
            found.append(parameter.grad if is_expert else mesh.all_reduce_sum(parameter.grad))
            expected.append(other.grad[local] if is_expert else other.grad)
        report[name] = worst(found, expected)  # type: ignore[arg-type]
    return report


class _SpiedWork:
    def __init__(self, work: Any, events: list[str]) -> None:
        self._work, self._events = work, events

    def wait(self) -> None:
        self._events.append("wait")
        self._work.wait()


@contextmanager
def spied(events: list[str]) -> Iterator[None]:
    """Write down every collective that is started and waited for; they run as ever."""
    real = dist.all_to_all_single

    def spy(*args: Any, async_op: bool = False, **options: Any) -> Any:
        events.append("start" if async_op else "counts")
        work = real(*args, async_op=async_op, **options)
        return _SpiedWork(work, events) if async_op else work

    dist.all_to_all_single = spy
    try:
        yield
    finally:
        dist.all_to_all_single = real


def check_order(mesh: Mesh) -> dict[str, list[str]]:
    """What happens in which order, for several kinds of passes; rank 0 has no token."""
    kinds: dict[str, Callable[[Mistral4MoE, Tensor], Tensor]] = {
        "plain": lambda block, hidden_td: block(hidden_td),
        "recomputed": lambda block, hidden_td: checkpoint(block, hidden_td, use_reentrant=False),
    }
    report = {}
    for name, call in kinds.items():
        block = spread(make_block(), mesh)
        report[f"{name} forward"], report[f"{name} backward"] = _events(mesh, block, call)
    for name, mode in (("no_grad", torch.no_grad()), ("inference", torch.inference_mode())):
        with mode:
            report[name] = _events(mesh, spread(make_block(), mesh), kinds["plain"])[0]
    # Only the shared expert is trained, and is all that the recomputation is for: it ends before the tokens have arrived.
    block = spread(make_block(), mesh)
    for parameter in [*block.experts.parameters(), *block.gate.parameters()]:
        parameter.requires_grad_(False)
    report["stopped early forward"], report["stopped early backward"] = _events(mesh, block, kinds["recomputed"], requires_grad=False)
    return report


def _events(
    mesh: Mesh, block: Mistral4MoE, call: Callable[[Mistral4MoE, Tensor], Tensor], *, requires_grad: bool = True
) -> tuple[list[str], list[str]]:
    forward: list[str] = []
    backward: list[str] = []
    place = forward
    block.shared_experts.down_proj.register_forward_pre_hook(lambda module, args: place.append("shared"))
    block.shared_experts.gate_proj.weight.register_hook(lambda gradient: backward.append("shared gradient"))
    hidden_td = inputs_of_ranks([0, 6, 3, 1][: mesh.world_size])[mesh.rank].requires_grad_(requires_grad)
    with spied(forward):
        out_td = call(block, hidden_td)
    place = backward
    if out_td.requires_grad:
        with spied(backward):
            out_td.square().sum().backward()
    return forward, backward


def check_adapters(mesh: Mesh) -> dict[str, float]:
    """Rows of several adapters, which travel with their adapter's index; one rank's rows are all for what acts, and one says nothing."""
    block = make_block()
    low, sizes = Low(2, 0.7), (EXPERTS, 16, 8)
    like = block.experts.gate_up_proj
    assert isinstance(like, Tensor)
    block.experts.lora = lora = StackedLora(*sizes, gate_up=low, down=low, like=like)
    lora.further["other"] = StackFactors(*sizes, gate_up=Low(3, 0.4), down=None, like=like)
    generator = torch.Generator().manual_seed(5)
    for parameter in lora.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    mine = spread(block, mesh)
    hidden_td = inputs_of_ranks([7, 3, 5, 0][: mesh.world_size])[mesh.rank]
    segments = [
        [RowSegment("other", 0, 2), RowSegment(None, 2, 6), RowSegment("unknown", 6, 7)],
        None,
        [RowSegment("other", 0, 5)],
        None,
    ][mesh.rank]
    traffic.take()
    with torch.inference_mode(), row_segments(segments) if segments else nullcontext():
        found_td, expected_td = mine(hidden_td), block(hidden_td)
    ids = [block.gate(tokens_td)[1] for tokens_td in inputs_of_ranks([7, 3, 5, 0][: mesh.world_size])]
    by_hand = counted_by_hand(ids, mesh.rank, 16 * 8, 8, label_extra=4)
    counted = _as_lists(traffic.take())
    with torch.inference_mode():
        plain_td = mine(hidden_td)
    return {
        "error": worst([found_td], [expected_td]),
        "without_segments": worst([plain_td], [expected_td]),
        "bytes_differ": sum(abs(counted[kind][0] - by_hand[kind][0]) for kind in counted),
    }
